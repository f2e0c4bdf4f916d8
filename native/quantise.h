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

// Stores a row's values, times the root of the block's size. Returns, lane by lane, the bits of the largest magnitude:
// as integers they are in the numbers' order, NaN above all.
template <int Block>
inline Ints rotate(const Quantise& call, int64_t row, float* values) {
  constexpr int kStep = Block > W ? Block : W;
  Ints most = {};
  for_each_vector<kStep>(call.width, [&](int64_t i, int64_t count) {
    Floats x[kStep / W];
    for (int part = 0; part < kStep / W; ++part)
      x[part] = as_floats(call.x, call.bfloat16, row * call.width + i + part * W, count - part * W);
    if constexpr (kStep > W) {
      static_assert(kStep == 2 * W);
      const Floats near = x[0], far = x[1];
      x[0] = near + far;
      x[1] = near - far;
    }
    for (int part = 0; part < kStep / W; ++part) {
      const Floats y = hadamard<(Block > W ? W : Block) / 2>(x[part]);
      store(values + i + part * W, y);
      const Ints size = bits<Ints>(y) & 0x7fffffff;
      most = size > most ? size : most;
    }
  });
  return most;
}

// Values times `share`, to the nearest integers.
inline void round_to(int8_t* out, const float* values, int64_t width, float share) {
  constexpr float kRounding = 0x1.8p23f;  // adding it leaves the nearest integer in the last bits
  for_each_vector(width, [&](int64_t i, int64_t count) {
    const Ints whole = bits<Ints>(load<Floats>(values + i) * share + kRounding) - bits<int32_t>(kRounding);
    store_part(out + i, as_bytes(whole), count);
  });
}

template <int Block>
inline void quantise_rows(const Quantise call, int64_t first_row, int64_t rows) {
  const float norm = 1 / __builtin_sqrtf(Block);
  const int64_t stride = round_up(call.width, W);
  float* values = reinterpret_cast<float*>(jaxpool::workspace(kRowsTogether * stride * sizeof(float)));
  for (int64_t row = first_row; row < first_row + rows; row += kRowsTogether) {
    const int64_t count = smaller(kRowsTogether, first_row + rows - row);
    Ints most[kRowsTogether];
    for (int64_t i = 0; i < count; ++i) most[i] = rotate<Block>(call, row + i, values + i * stride);
    for (int64_t i = 0; i < count; ++i) {
      const float step = bits<float>(largest(most[i])) * norm / 127;
      call.scale[row + i] = step < __FLT_MIN__ ? __FLT_MIN__ : step;
    }
    for (int64_t i = 0; i < count; ++i)
      round_to(call.out + (row + i) * call.width, values + i * stride, call.width, norm / call.scale[row + i]);
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
