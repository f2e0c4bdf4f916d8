#include <cstdint>
#include <cstring>

#pragma GCC target("avx2,fma")
#define WIDTH 8
#define ROWS 6  // twelve sums, two operands and a query's number: fifteen of sixteen registers
#include "float_tiles.h"
#include "norm.h"
#include "quantise.h"
#include "vector_product.h"

void jaxpool::avx2(const Attention& call, int64_t row, int64_t kv_head) { attend_in_float32(call, row, kv_head); }

void jaxpool::avx2(const Norm& call, int64_t first_row, int64_t rows) { normalise(call, first_row, rows); }

void jaxpool::avx2(const Quantise& call, int64_t first_row, int64_t rows) { quantise(call, first_row, rows); }

void jaxpool::avx2(const Product& call, const Piece& piece) { multiply_widened(call, piece); }
