// Rows of 8-bit integers: each block of features is multiplied by a Hadamard matrix first.
#pragma once

#include "lanes.h"

namespace {

using jaxpool::Quantise;

// Blocks of 2 · `Step` lanes and of all smaller powers of two: sums and differences of lanes that are `Step` apart.
template <int Step>
inline Floats hadamard(Floats x) {
  if constexpr (Step == 0)
    return x;
  else {
    Floats sign;
    for (int lane = 0; lane < W; ++lane) sign[lane] = lane & Step ? -1 : 1;
    return hadamard<Step / 2>(x * sign + swapped<Step>(x));
  }
}

template <int Block>
inline void quantise_rows(const Quantise call, int64_t first_row, int64_t rows) {
  constexpr int kStep = Block > W ? Block : W;
  constexpr float kRounding = 0x1.8p23f;  // adding it leaves the nearest integer in the last bits
  const int64_t width = call.width;
  const float norm = 1 / __builtin_sqrtf(Block);
  float* values = reinterpret_cast<float*>(jaxpool::workspace(round_up(width, W) * sizeof(float)));
  for (int64_t row = first_row; row < first_row + rows; ++row) {
    Ints most = {};  // of numbers' bits without their signs, which lie as they do; NaN above all
    for_each_vector<kStep>(width, [&](int64_t i, int64_t count) {
      Floats x[kStep / W];
      for (int part = 0; part < kStep / W; ++part)
        x[part] = as_floats(call.x, call.bfloat16, row * width + i + part * W, count - part * W);
      if constexpr (kStep > W) {
        static_assert(kStep == 2 * W);
        const Floats near = x[0], far = x[1];
        x[0] = near + far;
        x[1] = near - far;
      }
      for (int part = 0; part < kStep / W; ++part) {
        const Floats y = hadamard<(Block > W ? W : Block) / 2>(x[part]) * norm;
        store(values + i + part * W, y);
        const Ints size = bits<Ints>(y) & 0x7fffffff;
        most = size > most ? size : most;
      }
    });
    const float top = bits<float>(largest(most));
    const float step = top / 127 < __FLT_MIN__ ? __FLT_MIN__ : top / 127, share = 1 / step;
    for_each_vector(width, [&](int64_t i, int64_t count) {
      const Ints whole = bits<Ints>(load<Floats>(values + i) * share + kRounding) - bits<int32_t>(kRounding);
      store_part(call.out + row * width + i, as_bytes(whole), count);
    });
    call.scale[row] = step;
  }
}

inline void quantise(const Quantise& call, int64_t first_row, int64_t rows) {
  switch (call.block) {
    case 1:
      return quantise_rows<1>(call, first_row, rows);
    case 2:
      return quantise_rows<2>(call, first_row, rows);
    case 4:
      return quantise_rows<4>(call, first_row, rows);
    case 8:
      return quantise_rows<8>(call, first_row, rows);
    default:
      return quantise_rows<16>(call, first_row, rows);
  }
}

}  // namespace
