// Activations of a register of numbers, whose results are `Out`. In float32 errors are below 1e-6 of the result or of
// 1, whichever is larger; where results are rounded to bfloat16, below a quarter of that rounding, or below 3e-6.
#pragma once

#include <immintrin.h>

#include <iterator>

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
template <class Out>
inline Floats decay(Floats x) {
  return exp2<kExpTerms<Out>>(x * -0x1.715476p0f);
}

template <class Out>
inline Floats sigmoid(Floats x) {
  const Floats falling = decay<Out>(magnitude(x)), share = reciprocal(1.0f + falling);
  return x < 0.0f ? falling * share : share;
}

struct Identity {
  template <class Out>
  static Floats of(Floats x) {
    return x;
  }
};

// Φ(x) - 1/2 as x · P(x²) / Q(x²), fitted up to ±kEnd: x · Φ(x) is within 2e-8 there in exact numbers, …
template <class Out>
struct GeluFit {
  static constexpr float kEnd = 5.4f;
  static constexpr float kP[] = {0x1.42551cp+18f, 0x1.bde536p+14f, 0x1.e863d2p+11f,
                                 0x1.23ab9cp+7f,  0x1.57ac4cp+2f,  0x1.34c0a4p-6f};
  static constexpr float kQ[] = {0x1.93fbecp+19f, 0x1.9907d4p+17f, 0x1.7741eep+14f, 0x1.8e4490p+10f, 0x1.fa695ap+5f};
};

// … and within 2.4e-6 where it is rounded to eight digits.
template <>
struct GeluFit<BFloat16> {
  static constexpr float kEnd = 5;
  static constexpr float kP[] = {0x1.985292p+16f, 0x1.e11600p+12f, 0x1.1afd98p+10f, 0x1.062662p+4f};
  static constexpr float kQ[] = {0x1.ffb9cep+17f, 0x1.ec4354p+15f, 0x1.a533e4p+12f, 0x1.8a8852p+8f};
};

// x · Φ(x); 0 below the fit's end. Q's highest coefficient is 1, so that its first step is an addition.
struct Gelu {
  template <class Out>
  static Floats of(Floats x) {
    using Fit = GeluFit<Out>;
    constexpr int kInP = std::size(Fit::kP), kInQ = std::size(Fit::kQ);
    const Floats near = clamp(x, Fit::kEnd), square = near * near;
    Floats p = square * Fit::kP[kInP - 1] + Fit::kP[kInP - 2], q = square + Fit::kQ[kInQ - 1];
#pragma GCC unroll 8
    for (int term = kInP - 3; term >= 0; --term) p = p * square + Fit::kP[term];
#pragma GCC unroll 8
    for (int term = kInQ - 2; term >= 0; --term) q = q * square + Fit::kQ[term];
    const Floats y = x * (near * p * reciprocal(q) + 0.5f);
    return x < -Fit::kEnd ? Floats{} : y;
  }
};

// 0.5 · x · (1 + tanh(y)) is x · sigmoid(2 · y).
struct GeluTanh {
  template <class Out>
  static Floats of(Floats x) {
    constexpr float kTwice = 0x1.988454p0f;  // 2 · sqrt(2 / π)
    return x * sigmoid<Out>(kTwice * (x + 0.044715f * x * x * x));
  }
};

struct QuickGelu {
  template <class Out>
  static Floats of(Floats x) {
    return x * sigmoid<Out>(1.702f * x);
  }
};

struct Silu {
  template <class Out>
  static Floats of(Floats x) {
    return x * sigmoid<Out>(x);
  }
};

struct Relu {
  template <class Out>
  static Floats of(Floats x) {
    return x < 0.0f ? Floats{} : x;
  }
};

}  // namespace
