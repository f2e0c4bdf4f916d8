// Norms on CPUs that have AMX, which also round to bfloat16 in one instruction.
#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,prefer-vector-width=512")
#define WIDTH 16
#define ROUNDS_TO_BFLOAT16
#include "norm.h"

void jaxpool::amx(const Norm& call, int64_t first_row, int64_t rows) { normalise(call, first_row, rows); }
