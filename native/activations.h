// Activations of a register of numbers. Errors are below 3e-7 of the result or of 1, whichever is larger.
#pragma once

#include <immintrin.h>

#include "lanes.h"

namespace {

inline Floats magnitude(Floats x) { return bits<Floats>(bits<Ints>(x) & 0x7fffffff); }

// 1 / x for x from 1 to 1e30; by AVX-512's estimate of 14 bits and a step of Newton's, a division takes four times as
// long.
inline Floats reciprocal(Floats x) {
#if WIDTH == 16
  const Floats estimate = bits<Floats>(_mm512_rcp14_ps(bits<__m512>(x)));
  return estimate * (2.0f - x * estimate);
#else
  return 1.0f / x;
#endif
}

// From -end to end; of NaN one of the two.
inline Floats clamp(Floats x, float end) {
#if WIDTH == 16
  const __m512 ends = _mm512_set1_ps(end);
  return bits<Floats>(_mm512_min_ps(_mm512_max_ps(bits<__m512>(x), -ends), ends));
#else
  const __m256 ends = _mm256_set1_ps(end);
  return bits<Floats>(_mm256_min_ps(_mm256_max_ps(bits<__m256>(x), -ends), ends));
#endif
}

// exp(-x) for x ≥ 0.
inline Floats decay(Floats x) { return exp2<7>(x * -0x1.715476p0f); }

inline Floats sigmoid(Floats x) {
  const Floats falling = decay(magnitude(x)), share = reciprocal(1.0f + falling);
  return x < 0.0f ? falling * share : share;
}

struct Identity {
  static Floats of(Floats x) { return x; }
};

// x · Φ(x): Φ(x) - 1/2 as x · P(x²) / Q(x²), fitted to within 6e-9 up to ±5.4; below that the result is 0.
struct Gelu {
  static Floats of(Floats x) {
    constexpr float kEnd = 5.4f;
    constexpr float kP[] = {0x1.988450p-2f,  0x1.1162c2p-5f,  0x1.30cc68p-8f,
                            0x1.589be4p-13f, 0x1.aad074p-18f, 0x1.91c7dep-26f};
    constexpr float kQ[] = {0x1.000000p+0f,  0x1.00535ep-2f,  0x1.d0f4fep-6f,
                            0x1.e75262p-10f, 0x1.2fab5ap-14f, 0x1.469380p-20f};
    const Floats near = clamp(x, kEnd), square = near * near;
    Floats p = square * kP[5] + kP[4], q = square * kQ[5] + kQ[4];
#pragma GCC unroll 4
    for (int term = 3; term >= 0; --term) {
      p = p * square + kP[term];
      q = q * square + kQ[term];
    }
    const Floats y = x * (near * p * reciprocal(q)) + 0.5f * x;
    return x < -kEnd ? Floats{} : y;
  }
};

// 0.5 · x · (1 + tanh(y)) is x · sigmoid(2 · y).
struct GeluTanh {
  static Floats of(Floats x) {
    constexpr float kTwice = 0x1.988454p0f;  // 2 · sqrt(2 / π)
    return x * sigmoid(kTwice * (x + 0.044715f * x * x * x));
  }
};

struct QuickGelu {
  static Floats of(Floats x) { return x * sigmoid(1.702f * x); }
};

struct Silu {
  static Floats of(Floats x) { return x * sigmoid(x); }
};

struct Relu {
  static Floats of(Floats x) { return x < 0.0f ? Floats{} : x; }
};

}  // namespace
