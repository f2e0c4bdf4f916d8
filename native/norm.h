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

// The sum of term(0), term(W), … as lanes; several at a time, since one would wait for the other.
template <class Term>
inline Floats total(int64_t width, Term term) {
  constexpr int64_t kWhole = W;
  Floats sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= width; i += 4 * W) {
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) sums[part] += term(i + part * W, kWhole);
  }
  for (; i + W <= width; i += W) sums[0] += term(i, kWhole);
  if (i < width) sums[1] += term(i, width - i);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// A call of its own: the compiler must take every store for one into a call that others know.
inline void normalise(const Norm call, int64_t first_row, int64_t rows) {
  const int64_t width = call.width, stride = round_up(width, W);
  float* values = reinterpret_cast<float*>(jaxpool::workspace(kRowsTogether * stride * sizeof(float)));
  float means[kRowsTogether], shares[kRowsTogether];
  for (int64_t row = first_row; row < first_row + rows; row += kRowsTogether) {
    const int64_t together = smaller(kRowsTogether, first_row + rows - row);
    for (int64_t number = 0; number < together; ++number) {
      const Floats lanes = total(width, [&](int64_t i, int64_t count) {
        const Floats x = as_floats(call.x, call.x_bfloat16, (row + number) * width + i, count);
        store(values + number * stride + i, x);
        return x;
      });
      means[number] = call.centred ? sum(lanes) / width : 0;
    }
    for (int64_t number = 0; number < together; ++number) {
      const Floats squares = total(width, [&](int64_t i, int64_t count) {
        const Floats x = first(load<Floats>(values + number * stride + i) - means[number], count);
        return x * x;
      });
      shares[number] = 1 / __builtin_sqrtf(sum(squares) / width + call.epsilon);
    }
    for (int64_t number = 0; number < together; ++number) {
      for_each_vector(width, [&](int64_t i, int64_t count) {
        const Floats x = load<Floats>(values + number * stride + i);
        Floats y = (x - means[number]) * shares[number] * as_floats(call.scale + i, count);
        if (call.bias) y += as_floats(call.bias + i, count);
        store_floats(call.out, call.bfloat16, (row + number) * width + i, y, count);
      });
    }
  }
}

}  // namespace
