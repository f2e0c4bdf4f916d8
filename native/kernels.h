// What is computed on a CPU's own vector units: what each call is, and the kernels that compute it. Calls for different
// pieces of a result may run side by side.
#pragma once

#include <cstddef>
#include <cstdint>

namespace jaxpool {

// Attention over packed rows, of arrays as JAX lays them out. A query sees the keys of its own run of equal, positive
// numbers in `segments`, and of those at most `left` earlier and `right` later ones.
struct Attention {
  const void *q, *k, *v;    // [rows, tokens, heads, width], and twice [rows, tokens, kv_heads, width]
  bool bfloat16;            // their dtype, or float32
  const int32_t* segments;  // [rows, tokens], 0 for padding
  bool out_bfloat16;        // the dtype of the result, or float32
  void* out;                // [rows, tokens, heads, width]; padding's is zero
  int64_t rows, tokens, heads, kv_heads, width;
  float scale;          // positive
  int64_t left, right;  // from 0 to tokens
};

// The queries of one row that share one key head.
using AttentionKernel = void (*)(const Attention&, int64_t row, int64_t kv_head);

void avx2(const Attention&, int64_t row, int64_t kv_head);         // both dtypes, computed in float32
void avx512(const Attention&, int64_t row, int64_t kv_head);       // both dtypes, computed in float32
void avx512_bf16(const Attention&, int64_t row, int64_t kv_head);  // bfloat16, summed in float32
void amx(const Attention&, int64_t row, int64_t kv_head);          // bfloat16, summed in float32

enum class Activation { kIdentity, kGelu, kGeluTanh, kQuickGelu, kSilu, kRelu };

// A dense layer: activation(x · kernel + bias), plus another array or times it. The kernel lies in panels of `kPanel`
// outputs, with zeros where there is no output. In float32 a panel has a row for each input. In bfloat16, and in 8-bit
// integers with a scale for each row of x and for each output, it lies as AMX takes it, in tiles of 16 rows of 64
// bytes: for as many inputs as 64 bytes hold, two tiles of 16 outputs, of which each row has 4 bytes' worth of inputs;
// zeros where there is no input. Sums are float32, of integers int32 first.
struct Product {
  static constexpr int64_t kPanel = 32;
  // Words, of what a vector unit multiplies in a lane, that it sums over before the next: a piece's part of the kernel,
  // and a block's of x, stay in the cache.
  static constexpr int64_t kDepth = 384;
  enum DType { kFloat32, kBFloat16, kInt8 } dtype;
  const void *x, *panels;          // [rows, inputs], [outputs, inputs] as above
  const float *row_scale, *scale;  // [rows], [outputs]; of integers
  const float* bias;               // [outputs], or null
  Activation activation;
  const void* other;  // [rows, outputs], or null
  bool other_bfloat16, multiplies;
  bool bfloat16;  // the dtype of the result, or float32
  void* out;      // [rows, outputs]
  int64_t rows, inputs, outputs;

  int64_t width() const { return inputs * (dtype == kFloat32 ? 4 : dtype == kBFloat16 ? 2 : 1); }  // x's, in bytes
};

// A part of a product's result, from a row and from a panel's first column on.
struct Piece {
  int64_t row, column, rows, columns;
};

using ProductKernel = void (*)(const Product&, const Piece&);

void avx2(const Product&, const Piece&);
void avx512(const Product&, const Piece&);
void avx512_vnni(const Product&, const Piece&);  // 8-bit integers
void avx512_bf16(const Product&, const Piece&);  // bfloat16 and 8-bit integers
void amx(const Product&, const Piece&);          // bfloat16 and 8-bit integers
void amx_float32(const Product&, const Piece&);  // float32, as the sum of three bfloat16s

// The norm of each row in float32: by its standard deviation, or (`centred` is not set) by its root mean square.
struct Norm {
  const void* x;  // [rows, width]
  bool x_bfloat16;
  const float *scale, *bias;  // [width]; bias may be null
  bool centred;
  float epsilon;
  bool bfloat16;  // the dtype of the result, or float32
  void* out;      // [rows, width]
  int64_t rows, width;
};

using NormKernel = void (*)(const Norm&, int64_t first_row, int64_t rows);

void avx2(const Norm&, int64_t first_row, int64_t rows);
void avx512(const Norm&, int64_t first_row, int64_t rows);
void avx512_bf16(const Norm&, int64_t first_row, int64_t rows);

// Rows as 8-bit integers times a scale each, after every `block` features have been multiplied by Sylvester's Hadamard
// matrix over the root of its size.
struct Quantise {
  const void* x;  // [rows, width]
  bool bfloat16;  // its dtype, or float32
  int64_t block;  // 1, 2, 4, 8 or 16; divides the width
  int8_t* out;    // [rows, width]
  float* scale;   // [rows]
  int64_t rows, width;
};

using QuantiseKernel = void (*)(const Quantise&, int64_t first_row, int64_t rows);

void avx2(const Quantise&, int64_t first_row, int64_t rows);
void avx512(const Quantise&, int64_t first_row, int64_t rows);

// Memory of the calling thread, at an address that is a multiple of 64; the same each time, unless it grows.
char* workspace(size_t bytes);

}  // namespace jaxpool
