#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define WIDTH 16
#define ROWS 12  // 24 sums and two operands, of 32 registers
#include "float_tiles.h"
#include "norm.h"
#include "quantise.h"
#include "vector_product.h"

void jaxpool::avx512(const Attention& call, int64_t row, int64_t kv_head) { attend_in_float32(call, row, kv_head); }

void jaxpool::avx512(const Norm& call, int64_t first_row, int64_t rows) { normalise(call, first_row, rows); }

void jaxpool::avx512(const Quantise& call, int64_t first_row, int64_t rows) { quantise(call, first_row, rows); }

void jaxpool::avx512(const Product& call, const Piece& piece) { multiply_widened(call, piece); }
