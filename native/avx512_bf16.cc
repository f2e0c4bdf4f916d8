#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma,prefer-vector-width=512")
#define WIDTH 16
#define ROWS 12  // 24 sums and two operands, of 32 registers
#define ROUNDS_TO_BFLOAT16
#include "bfloat16_tiles.h"
#include "bfloat16_words.h"
#include "int8_words.h"
#include "norm.h"
#include "vector_product.h"

namespace {

struct VectorUnit {
  static constexpr int64_t kQueries = ROWS;

  static void product(int64_t count, const BFloat16* a, int64_t a_stride, const BFloat16* b, int64_t panel,
                      int64_t depth, float* out, int64_t out_stride) {
    const auto *words = reinterpret_cast<const BFloat16Word*>(a), *left = reinterpret_cast<const BFloat16Word*>(b);
    product_of<ROWS, Rows<W>>(count, FromZero(), words, a_stride / 2, left, left + panel / 2, depth / 2, out,
                              out_stride, NothingAhead());
  }
};

}  // namespace

void jaxpool::avx512_bf16(const Attention& call, int64_t row, int64_t kv_head) {
  attend<BFloat16Tiles<VectorUnit>>(call, row, kv_head);
}

void jaxpool::avx512_bf16(const Norm& call, int64_t first_row, int64_t rows) { normalise(call, first_row, rows); }

void jaxpool::avx512_bf16(const Product& call, const Piece& piece) {
  if (call.dtype == Product::kInt8)
    multiply<Tiled<Int8Word>>(call, piece);
  else
    multiply<Tiled<BFloat16Word>>(call, piece);
}
