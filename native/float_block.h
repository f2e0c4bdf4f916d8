// The float32 product that a vector unit computes at a time: sums in registers, each step multiplies one number of
// several rows with two registers of columns.
#pragma once

#include "lanes.h"

namespace {

// out [M, 2W] = a [M, depth] · b, or (`Add`) += it; b's halves [depth, W] have a row every `Step` numbers.
template <int M, int64_t Step, bool Add>
inline void product(const float* a, int64_t a_stride, const float* left, const float* right, int64_t depth, float* out,
                    int64_t out_stride) {
  Floats sums[M][2] = {};
  if constexpr (Add) {
#pragma GCC unroll 16
    for (int row = 0; row < M; ++row) {
      sums[row][0] = load<Floats>(out + row * out_stride);
      sums[row][1] = load<Floats>(out + row * out_stride + W);
    }
  }
  for (int64_t step = 0; step < depth; ++step) {
    const Floats near = load<Floats>(left + step * Step), far = load<Floats>(right + step * Step);
#pragma GCC unroll 16
    for (int row = 0; row < M; ++row) {
      const float x = a[row * a_stride + step];
      sums[row][0] += x * near;
      sums[row][1] += x * far;
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < M; ++row) {
    store(out + row * out_stride, sums[row][0]);
    store(out + row * out_stride + W, sums[row][1]);
  }
}

// Calls product<count, …>, for a count from 1 to M.
template <int M, int64_t Step, bool Add, class... Arguments>
inline void product_of(int64_t count, Arguments... arguments) {
  if constexpr (M > 1) {
    if (count < M) return product_of<M - 1, Step, Add>(count, arguments...);
  }
  product<M, Step, Add>(arguments...);
}

}  // namespace
