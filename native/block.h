// The product that a vector unit computes at a time: sums in registers, each step multiplies one word of several rows
// with two registers of columns. A word is a float32, two 16-bit integers, which are summed in int32, or of a type that
// other files define.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "lanes.h"

namespace {

// What a word's products are summed in.
template <class Word>
struct SumOf {
  using Type = Word;
};

template <class Word>
using Sum = typename SumOf<Word>::Type;

template <class Number>
using Lanes = std::conditional_t<std::is_same_v<Number, float>, Floats, Ints>;

inline Floats multiply_add(Floats sum, float x, Floats y) { return sum + x * y; }

inline Ints multiply_add(Ints sum, int32_t x, Ints y) {
#if WIDTH == 16
  return sum + bits<Ints>(_mm512_madd_epi16(_mm512_set1_epi32(x), bits<__m512i>(y)));
#else
  return sum + bits<Ints>(_mm256_madd_epi16(_mm256_set1_epi32(x), bits<__m256i>(y)));
#endif
}

// Memory that is wanted next, to be fetched meanwhile: so many bytes a step.
struct Ahead {
  const char* from;
  int64_t bytes;
  void operator()(int64_t step) const { __builtin_prefetch(from + step * bytes); }
};

struct NothingAhead {
  void operator()(int64_t) const {}
};

// Where the rows of a panel are, in words, and its right half: one every `Step`, …
template <int64_t Step>
struct Rows {
  static constexpr int64_t kRight = W;
  static int64_t at(int64_t row) { return row * Step; }
};

// … or in tiles of 16 by 16, of the left and of the right half in turn.
struct TileRows {
  static constexpr int64_t kSide = 16, kTile = kSide * kSide, kRight = kTile;
  static int64_t at(int64_t row) { return row / kSide * (2 * kTile) + row % kSide * kSide; }
};

// out [M, 2W] = a [M, depth] · b, or (`Add`) += it; b's halves [depth, W] have their rows where `Layout` says.
template <int M, class Layout, bool Add, class Word, class Fetch>
inline void product(const Word* a, int64_t a_stride, const Word* left, const Word* right, int64_t depth, Sum<Word>* out,
                    int64_t out_stride, Fetch ahead) {
  using Vector = Lanes<Sum<Word>>;
  using Operand = Lanes<Word>;
  Vector sums[M][2] = {};
  if constexpr (Add) {
#pragma GCC unroll 16
    for (int row = 0; row < M; ++row) {
      sums[row][0] = load<Vector>(out + row * out_stride);
      sums[row][1] = load<Vector>(out + row * out_stride + W);
    }
  }
  for (int64_t step = 0; step < depth; ++step) {
    const int64_t at = Layout::at(step);
    const Operand near = load<Operand>(left + at), far = load<Operand>(right + at);
    ahead(step);
#pragma GCC unroll 16
    for (int row = 0; row < M; ++row) {
      const Word x = a[row * a_stride + step];
      sums[row][0] = multiply_add(sums[row][0], x, near);
      sums[row][1] = multiply_add(sums[row][1], x, far);
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < M; ++row) {
    store(out + row * out_stride, sums[row][0]);
    store(out + row * out_stride + W, sums[row][1]);
  }
}

// Calls product<count, …>, for a count from 1 to M.
template <int M, class Layout, bool Add, class... Arguments>
inline void product_of(int64_t count, Arguments... arguments) {
  if constexpr (M > 1) {
    if (count < M) return product_of<M - 1, Layout, Add>(count, arguments...);
  }
  product<M, Layout, Add>(arguments...);
}

}  // namespace
