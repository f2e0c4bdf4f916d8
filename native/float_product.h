// Dense layers in float32: blocks of ROWS rows by a panel, whose sums are held in registers over `kDepth` inputs at a
// time, for which a piece's part of x and of the kernel stays in the cache.
#pragma once

#include "float_block.h"
#include "product.h"

namespace {

constexpr int64_t kDepth = 384;

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
            product_of<ROWS, kColumns, true>(count, x + row * call.inputs + input, call.inputs, panel + half,
                                             panel + half + W, depth, sums + half, kColumns);
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
