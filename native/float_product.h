// Dense layers in float32: blocks of ROWS rows by a panel, whose sums are held in registers over `kDepth` inputs at a
// time, for which a piece's part of x and of the kernel stays in the cache.
#pragma once

#include "product.h"

namespace {

constexpr int64_t kDepth = 384;

// sums [M, 2W] += x [M, depth] · the part of a panel that starts at `panel`.
template <int M>
inline void add_product(const float* x, int64_t stride, const float* panel, int64_t depth, float* sums) {
  Floats own[M][2];
#pragma GCC unroll 16
  for (int row = 0; row < M; ++row) {
    own[row][0] = load<Floats>(sums + row * kColumns);
    own[row][1] = load<Floats>(sums + row * kColumns + W);
  }
  for (int64_t step = 0; step < depth; ++step) {
    const Floats left = load<Floats>(panel + step * kColumns), right = load<Floats>(panel + step * kColumns + W);
#pragma GCC unroll 16
    for (int row = 0; row < M; ++row) {
      const float number = x[row * stride + step];
      own[row][0] += number * left;
      own[row][1] += number * right;
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < M; ++row) {
    store(sums + row * kColumns, own[row][0]);
    store(sums + row * kColumns + W, own[row][1]);
  }
}

// Calls add_product<count>, for a count from 1 to M.
template <int M, class... Arguments>
inline void add_product_of(int64_t count, Arguments... arguments) {
  if constexpr (M > 1) {
    if (count < M) return add_product_of<M - 1>(count, arguments...);
  }
  add_product<M>(arguments...);
}

template <class Activation, class Out>
struct FloatProduct {
  static void run(const Product& call, int64_t first_row, int64_t first_column) {
    const int64_t rows = smaller(jaxpool::kProductRows, call.rows - first_row);
    const int64_t columns = smaller(jaxpool::kProductColumns, call.outputs - first_column);
    const int64_t panels = (columns + kColumns - 1) / kColumns;
    const float* x = static_cast<const float*>(call.x) + first_row * call.inputs;
    float* all = reinterpret_cast<float*>(jaxpool::workspace(panels * rows * kColumns * sizeof(float)));
    memset(all, 0, panels * rows * kColumns * sizeof(float));
    for (int64_t input = 0; input < call.inputs; input += kDepth) {
      const int64_t depth = smaller(kDepth, call.inputs - input);
      for (int64_t row = 0; row < rows; row += ROWS) {
        const int64_t count = smaller(ROWS, rows - row);
        for (int64_t number = 0; number < panels; ++number) {
          const float* panel = static_cast<const float*>(call.panels) +
                               ((first_column / kColumns + number) * call.inputs + input) * kColumns;
          float* sums = all + (number * rows + row) * kColumns;
          for (int64_t half = 0; half < kColumns; half += 2 * W)
            add_product_of<ROWS>(count, x + row * call.inputs + input, call.inputs, panel + half, depth, sums + half);
          if (input + depth < call.inputs) continue;
          const Block<float> block = {sums, first_row + row, first_column + number * kColumns, count};
          Ending<float, Activation, Out>(call, block).finish(0, count);
        }
      }
    }
  }
};

inline void multiply(const Product& call, int64_t first_row, int64_t first_column) {
  dispatch<FloatProduct>(call, first_row, first_column);
}

}  // namespace
