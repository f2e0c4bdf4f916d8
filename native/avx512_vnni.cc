#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,prefer-vector-width=512")
#define WIDTH 16
#define ROWS 12  // 24 sums and two operands, of 32 registers
#include "int8_words.h"
#include "vector_product.h"

void jaxpool::avx512_vnni(const Product& call, const Piece& piece) { multiply<Tiled<Int8Word>>(call, piece); }
