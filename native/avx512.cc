#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define WIDTH 16
#define QUERIES 12  // 24 sums and two operands, of 32 registers
#include "float_tiles.h"

void jaxpool::avx512(const Attention& call, int64_t row, int64_t kv_head) { attend_in_float32(call, row, kv_head); }
