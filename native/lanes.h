// A vector register as `WIDTH` lanes of 32 bits, in the vector types of GCC. Each instruction set's file defines WIDTH
// and includes this; all is in an unnamed namespace, since the linker must not take one set's code for another's.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"

namespace {

constexpr int W = WIDTH;

typedef float Floats __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));
typedef uint16_t Halves __attribute__((vector_size(2 * W)));
typedef int8_t Bytes __attribute__((vector_size(W)));

// The bits of a bfloat16.
struct BFloat16 {
  uint16_t bits;
};

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t round_up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// A vector anywhere in memory: one instruction, where memcpy would move it in pieces.
template <class Vector>
struct Anywhere {
  typedef Vector Unaligned __attribute__((aligned(2), may_alias));
};

template <class Vector>
inline Vector load(const void* from) {
  return *static_cast<const typename Anywhere<Vector>::Unaligned*>(from);
}

template <class Vector>
inline void store(void* to, Vector from) {
  *static_cast<typename Anywhere<Vector>::Unaligned*>(to) = from;
}

// A vector of which the first `bytes` are there; the rest is zero.
template <class Vector>
inline Vector load_part(const void* from, int64_t bytes) {
  if (bytes >= int64_t{sizeof(Vector)}) return load<Vector>(from);
  Vector there = {};
  if (bytes > 0) memcpy(&there, from, bytes);
  return there;
}

// Between sizes of lanes; GCC's own conversions take it several instructions, or one for each lane.
#if WIDTH == 16
inline Ints as_ints(Halves x) { return bits<Ints>(_mm512_cvtepu16_epi32(bits<__m256i>(x))); }
inline Bytes as_bytes(Ints x) { return bits<Bytes>(_mm512_cvtsepi32_epi8(bits<__m512i>(x))); }
#else
inline Ints as_ints(Halves x) { return bits<Ints>(_mm256_cvtepu16_epi32(bits<__m128i>(x))); }
inline Bytes as_bytes(Ints x) {
  const __m256i all = bits<__m256i>(x);
  const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  return bits<Bytes>(_mm_cvtsi128_si64(_mm_packs_epi16(shorts, shorts)));
}
#endif

inline Floats as_floats(const float* from, int64_t count) { return load_part<Floats>(from, count * sizeof(float)); }

inline Floats as_floats(const BFloat16* from, int64_t count) {
  return bits<Floats>(as_ints(load_part<Halves>(from, count * sizeof(BFloat16))) << 16);
}

// Of an array of either dtype, from the element `at`.
inline Floats as_floats(const void* array, bool bfloat16, int64_t at, int64_t count) {
  return bfloat16 ? as_floats(static_cast<const BFloat16*>(array) + at, count)
                  : as_floats(static_cast<const float*>(array) + at, count);
}

// The first `bytes` of a vector.
template <class Vector>
inline void store_part(void* to, Vector from, int64_t bytes) {
  if (bytes >= int64_t{sizeof(Vector)})
    store(to, from);
  else if (bytes > 0)
    memcpy(to, &from, bytes);
}

// To the nearest bfloat16, ties to even; NaN stays NaN.
inline Halves rounded(Floats x) {
#ifdef ROUNDS_TO_BFLOAT16
  return bits<Halves>(_mm512_cvtneps_pbh(bits<__m512>(x)));
#else
  const Ints raw = bits<Ints>(x), nearest = raw + 0x7fff + (raw >> 16 & 1);
  return __builtin_convertvector((x == x ? nearest : raw | 0x400000) >> 16 & 0xffff, Halves);
#endif
}

inline void store_floats(float* to, Floats from, int64_t count) { store_part(to, from, count * sizeof(float)); }

inline void store_floats(BFloat16* to, Floats from, int64_t count) {
  store_part(to, rounded(from), count * sizeof(BFloat16));
}

// To an array of either dtype, from the element `at` on.
inline void store_floats(void* array, bool bfloat16, int64_t at, Floats from, int64_t count) {
  if (bfloat16)
    store_floats(static_cast<BFloat16*>(array) + at, from, count);
  else
    store_floats(static_cast<float*>(array) + at, from, count);
}

// Calls piece(first element, elements) for each vector, or `Step` elements, of an array. Only the last may be a part of
// them: inlined, the others are code without a branch.
template <int Step = W, class Piece>
inline void for_each_vector(int64_t size, Piece piece) {
  int64_t i = 0;
  for (; i + Step <= size; i += Step) piece(i, Step);
  if (i < size) piece(i, size - i);
}

// One of the steps of a transposition: swaps the off-diagonal blocks of `Step` lanes of every pair of rows.
template <int Step>
inline void exchange(Floats* rows) {
  Ints near, far;
  for (int lane = 0; lane < W; ++lane) {
    near[lane] = lane & Step ? W + lane - Step : lane;
    far[lane] = lane & Step ? W + lane : lane + Step;
  }
#pragma GCC unroll 16
  for (int row = 0; row < W; ++row) {
    if (row & Step) continue;
    const Floats a = rows[row], b = rows[row + Step];
    rows[row] = __builtin_shuffle(a, b, near);
    rows[row + Step] = __builtin_shuffle(a, b, far);
  }
  if constexpr (Step > 1) exchange<Step / 2>(rows);
}

// Transposes W × W elements of 32 bits.
inline void transpose(Floats* rows) { exchange<W / 2>(rows); }

// Panels [words, W] of W tokens each, of rows of `words` elements of 32 bits: `row(token, word)` gives W of them.
template <class Row>
inline void pack_panels(void* panels, int64_t tokens, int64_t words, Row row) {
  float* to = static_cast<float*>(panels);
  for (int64_t token = 0; token < tokens; token += W) {
    for (int64_t word = 0; word < words; word += W) {
      Floats block[W];
      for (int i = 0; i < W; ++i) block[i] = row(token + i, word);
      transpose(block);
      for (int i = 0; i < W; ++i) store(to + token * words + (word + i) * W, block[i]);
    }
  }
}

// As many terms of the series below as a result of that dtype deserves.
template <class Out>
constexpr int kExpTerms = std::is_same_v<Out, float> ? 7 : 5;

// 2^x for x ≤ 0 by `Terms` terms of Taylor's series, which are within 3e-7 of the result for 7 and within 6e-5 for 5;
// exactly 0 below -126, NaN for NaN.
template <int Terms>
inline Floats exp2(Floats x) {
  // log(2)^n / n!
  constexpr float kPowers[] = {
      1, 0x1.62e430p-1f, 0x1.ebfbep-3f, 0x1.c6b08ep-5f, 0x1.3b2ab6p-7f, 0x1.5d8780p-10f, 0x1.430910p-13f};
  constexpr float kRounding = 0x1.8p23f;  // adding it leaves the nearest integer in the last bits
  const Floats shifted = x + kRounding;
  const Floats rest = x - (shifted - kRounding);  // from -0.5 to 0.5
  Floats y = rest * kPowers[Terms - 1] + kPowers[Terms - 2];
#pragma GCC unroll 8
  for (int term = Terms - 3; term >= 0; --term) y = y * rest + kPowers[term];
  const Floats power = bits<Floats>((bits<Ints>(shifted) << 23) + (127 << 23));
  return x < -126.0f ? Floats{} : y * power;
}

// Rows that are computed side by side: while one waits for its largest number or its sum and for divisions, the others
// go on.
constexpr int kRowsTogether = 4;

// Lanes in another order: each changes places with the one `Step` away.
template <int Step, class Vector>
inline Vector swapped(Vector x) {
  Ints from;
  for (int lane = 0; lane < W; ++lane) from[lane] = lane ^ Step;
  return __builtin_shuffle(x, from);
}

template <int Step = W / 2, class Vector>
inline auto largest(Vector x) {
  if constexpr (Step == 0)
    return x[0];
  else {
    const Vector other = swapped<Step>(x);
    return largest<Step / 2>(other > x ? other : x);
  }
}

template <int Step = W / 2>
inline float sum(Floats x) {
  if constexpr (Step == 0)
    return x[0];
  else
    return sum<Step / 2>(x + swapped<Step>(x));
}

}  // namespace
