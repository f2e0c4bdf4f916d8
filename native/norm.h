// Norms of rows, whatever the instruction set.
#pragma once

#include "lanes.h"

namespace {

using jaxpool::Norm;

// Sets the lanes from `count` on to zero.
inline Floats first(Floats x, int64_t count) {
  if (count >= W) return x;
  for (int lane = 0; lane < W; ++lane) x[lane] = lane < count ? x[lane] : 0;
  return x;
}

inline void normalise(const Norm& call, int64_t first_row, int64_t rows) {
  const int64_t width = call.width;
  float* values = reinterpret_cast<float*>(jaxpool::workspace(round_up(width, W) * sizeof(float)));
  for (int64_t row = first_row; row < first_row + rows; ++row) {
    Floats total = {}, squares = {};
    for (int64_t i = 0; i < width; i += W) {
      const Floats x = as_floats(call.x, call.x_bfloat16, row * width + i, width - i);
      store(values + i, x);
      total += x;
    }
    const float mean = call.centred ? sum(total) / width : 0;
    for (int64_t i = 0; i < width; i += W) {
      const Floats x = first(load<Floats>(values + i) - mean, width - i);
      squares += x * x;
    }
    const float share = 1 / __builtin_sqrtf(sum(squares) / width + call.epsilon);
    for (int64_t i = 0; i < width; i += W) {
      Floats y = (load<Floats>(values + i) - mean) * share * as_floats(call.scale + i, width - i);
      if (call.bias) y += as_floats(call.bias + i, width - i);
      store_floats(call.out, call.bfloat16, row * width + i, y, width - i);
    }
  }
}

}  // namespace
