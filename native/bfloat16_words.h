// Words of two bfloat16s, whose products one instruction sums.
#pragma once

#include "block.h"

namespace {

struct BFloat16Word {
  int32_t bits;
  static float start(const BFloat16Word*, int64_t) { return 0; }
};

template <>
struct SumOf<BFloat16Word> {
  using Type = float;
};

inline Floats multiply_add(Floats sum, BFloat16Word x, Ints y) {
  const auto pair = bits<__m512bh>(_mm512_set1_epi32(x.bits));
  return bits<Floats>(_mm512_dpbf16_ps(bits<__m512>(sum), pair, bits<__m512bh>(y)));
}

}  // namespace
