// What becomes of a dense layer's sums, whatever the instruction set.
#pragma once

#include <type_traits>

#include "activations.h"

namespace {

using jaxpool::Product;

constexpr int64_t kColumns = Product::kPanel;

// A block of sums [count, 32] that has its place in the result.
template <class Sums>
struct Block {
  const Sums* sums;
  int64_t row, column, count;
};

// What becomes of a block's sums. All is read from the call when this is made: the compiler must take every store for
// one into the call.
template <class Sums, class Activation, class Out>
class Ending {
 public:
  Ending(const Product& call, const Block<Sums>& block)
      : sums_(block.sums),
        row_scale_(call.row_scale + block.row),
        other_(call.other),
        other_bfloat16_(call.other_bfloat16),
        multiplies_(call.multiplies),
        out_(static_cast<Out*>(call.out)),
        stride_(call.outputs),
        at_(block.row * call.outputs + block.column),
        columns_(call.outputs - block.column) {
    for (int half = 0; half < kHalves; ++half) {
      const int64_t column = block.column + half * W, count = call.outputs - column;
      bias_[half] = call.bias ? as_floats(call.bias + column, count) : Floats{};
      scale_[half] = call.dtype == Product::kInt8 ? as_floats(call.scale + column, count) : Floats{};
    }
  }

  // Rows from `first` up to `last` to their places.
  void finish(int64_t first, int64_t last) const {
    if (columns_ >= kColumns)
      finish<true>(first, last);
    else
      finish<false>(first, last);
  }

 private:
  static constexpr int kHalves = kColumns / W;

  template <bool Whole>
  void finish(int64_t first, int64_t last) const {
    for (int64_t row = first; row < last; ++row) {
      for (int half = 0; half < kHalves; ++half) {
        const Sums* sums = sums_ + row * kColumns + half * W;
        Floats y;
        if constexpr (std::is_same_v<Sums, int32_t>)
          y = __builtin_convertvector(load<Ints>(sums), Floats) * (scale_[half] * row_scale_[row]);
        else
          y = load<Floats>(sums);
        y = Activation::template of<Out>(y + bias_[half]);
        const int64_t to = at_ + row * stride_ + half * W, count = Whole ? W : columns_ - half * W;
        if (other_) {
          const Floats z = as_floats(other_, other_bfloat16_, to, count);
          y = multiplies_ ? y * z : y + z;
        }
        store_floats(out_ + to, y, count);
      }
    }
  }

  const Sums* sums_;
  const float* row_scale_;
  const void* other_;
  const bool other_bfloat16_, multiplies_;
  Out* out_;
  const int64_t stride_, at_, columns_;
  Floats bias_[kHalves], scale_[kHalves];
};

// Computes with the call's activation and the dtype of its result; activations are in the order of jaxpool::Activation.
template <template <class Activation, class Out> class Compute, class... Arguments>
inline void dispatch(const Product& call, Arguments... arguments) {
  using Run = void (*)(const Product&, Arguments...);
  static constexpr Run kRun[][2] = {
      {Compute<Identity, float>::run, Compute<Identity, BFloat16>::run},
      {Compute<Gelu, float>::run, Compute<Gelu, BFloat16>::run},
      {Compute<GeluTanh, float>::run, Compute<GeluTanh, BFloat16>::run},
      {Compute<QuickGelu, float>::run, Compute<QuickGelu, BFloat16>::run},
      {Compute<Silu, float>::run, Compute<Silu, BFloat16>::run},
      {Compute<Relu, float>::run, Compute<Relu, BFloat16>::run},
  };
  kRun[static_cast<int>(call.activation)][call.bfloat16](call, arguments...);
}

}  // namespace
