// Words of four 8-bit integers, whose products one instruction sums. It takes one side without a sign: the kernel's
// numbers, each with 128 more than it is, for which a row's sums start at -128 times the sum of its own.
#pragma once

#include "block.h"

namespace {

struct Int8Word {
  int32_t bits;

  static int32_t start(const Int8Word* row, int64_t words) {
    __m512i sums = {};
    for (int64_t word = 0; word < words; word += W)
      sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), load<__m512i>(row + word));
    return -128 * _mm512_reduce_add_epi32(sums);
  }
};

template <>
struct SumOf<Int8Word> {
  using Type = int32_t;
};

inline Ints multiply_add(Ints sum, Int8Word x, Ints y) {
  const Ints more = y ^ static_cast<int32_t>(0x80808080);
  return bits<Ints>(_mm512_dpbusd_epi32(bits<__m512i>(sum), bits<__m512i>(more), _mm512_set1_epi32(x.bits)));
}

}  // namespace
