// Attention over packed rows on a CPU's own vector units: what a call is, and the kernels that compute it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace jaxpool {

// Arrays as JAX lays them out. A query sees the keys of its own run of equal, positive numbers in `segments`, and of
// those at most `left` earlier and `right` later ones.
struct Attention {
  const void *q, *k, *v;    // [rows, tokens, heads, width], and twice [rows, tokens, kv_heads, width]
  bool bfloat16;            // their dtype, or float32
  const int32_t* segments;  // [rows, tokens], 0 for padding
  float* out;               // [rows, tokens, heads, width]; padding's is zero
  int64_t rows, tokens, heads, kv_heads, width;
  float scale;          // positive
  int64_t left, right;  // from 0 to tokens
};

// Computes the queries of one row that share one key head. Calls for different pairs may run side by side.
using Kernel = void (*)(const Attention&, int64_t row, int64_t kv_head);

void avx2(const Attention&, int64_t row, int64_t kv_head);    // both dtypes, computed in float32
void avx512(const Attention&, int64_t row, int64_t kv_head);  // both dtypes, computed in float32
void amx(const Attention&, int64_t row, int64_t kv_head);     // bfloat16, summed in float32

// Memory of the calling thread, at an address that is a multiple of 64; the same each time, unless it grows.
char* workspace(size_t bytes);

}  // namespace jaxpool
