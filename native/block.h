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
  void step() {
    __builtin_prefetch(from);
    from += bytes;
  }
};

struct NothingAhead {
  void step() const {}
};

// Where the rows of a panel are, in words, and its right half: one every `Step`, …
template <int64_t Step>
struct Rows {
  static constexpr int64_t kRight = W, kStep = Step, kRun = INT64_MAX, kJump = 0;
};

// … or in tiles of 16 by 16, of the left and of the right half in turn: `kRun` rows a tile, then a jump.
struct TileRows {
  static constexpr int64_t kSide = 16, kTile = kSide * kSide, kRight = kTile, kStep = kSide, kRun = kSide,
                           kJump = kTile;
};

// Where `M` rows of words are. A pointer for each three: twelve would not fit the general registers, and each step
// would then fetch some from memory or from vector registers (4 to 8 % of a product with AVX-512).
template <int M, class Word>
class RowPointers {
 public:
  RowPointers(const Word* first, int64_t stride) : stride_(stride * int64_t{sizeof(Word)}) {
#pragma GCC unroll 16
    for (int group = 0; group < kGroups; ++group)
      groups_[group] = reinterpret_cast<const char*>(first + group * kShare * stride);
  }

  Word operator[](int row) const {
    return *reinterpret_cast<const Word*>(groups_[row / kShare] + row % kShare * stride_);
  }

  void step() {
#pragma GCC unroll 16
    for (int group = 0; group < kGroups; ++group) {
      groups_[group] += sizeof(Word);
      asm("" : "+r"(groups_[group]));  // else the compiler makes of them a pointer for each row
    }
  }

 private:
  static constexpr int kShare = 3, kGroups = (M + kShare - 1) / kShare;
  const int64_t stride_;
  const char* groups_[kGroups];
};

// What a row's sums begin with, from a column on: zero, …
struct FromZero {
  template <class Vector>
  Vector at(int, int) const {
    return Vector{};
  }
};

// … a number of each row's own, …
template <class Sums>
struct FromStarts {
  const Sums* starts;
  template <class Vector>
  Vector at(int row, int) const {
    return starts[row] + Vector{};
  }
};

// … or earlier sums.
template <class Sums>
struct FromSums {
  const Sums* sums;
  int64_t stride;
  template <class Vector>
  Vector at(int row, int column) const {
    return load<Vector>(sums + row * stride + column);
  }
};

// out [M, 2W] = begin + a [M, depth] · b, of which the halves [depth, W] have their rows where `Layout` says.
template <int M, class Layout, class Begin, class Word, class Fetch>
inline void product(Begin begin, const Word* a, int64_t a_stride, const Word* left, const Word* right, int64_t depth,
                    Sum<Word>* out, int64_t out_stride, Fetch ahead) {
  using Vector = Lanes<Sum<Word>>;
  using Operand = Lanes<Word>;
  Vector sums[M][2];
#pragma GCC unroll 16
  for (int row = 0; row < M; ++row) {
    sums[row][0] = begin.template at<Vector>(row, 0);
    sums[row][1] = begin.template at<Vector>(row, W);
  }
  RowPointers<M, Word> rows(a, a_stride);
  const int64_t apart = right - left;
  for (int64_t done = 0; done < depth; left += Layout::kJump) {
    for (const int64_t end = smaller(depth - done, Layout::kRun) + done; done < end; ++done) {
      const Operand near = load<Operand>(left), far = load<Operand>(left + apart);
      ahead.step();
#pragma GCC unroll 16
      for (int row = 0; row < M; ++row) {
        const Word x = rows[row];
        sums[row][0] = multiply_add(sums[row][0], x, near);
        sums[row][1] = multiply_add(sums[row][1], x, far);
      }
      rows.step();
      left += Layout::kStep;
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < M; ++row) {
    store(out + row * out_stride, sums[row][0]);
    store(out + row * out_stride + W, sums[row][1]);
  }
}

// Calls product<count, …>, for a count from 1 to M.
template <int M, class Layout, class... Arguments>
inline void product_of(int64_t count, Arguments... arguments) {
  if constexpr (M > 1) {
    if (count < M) return product_of<M - 1, Layout>(count, arguments...);
  }
  product<M, Layout>(arguments...);
}

}  // namespace
