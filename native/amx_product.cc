// Dense layers in bfloat16 and in 8-bit integers by AMX.
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#pragma GCC target("amx-tile,amx-bf16,amx-int8,prefer-vector-width=512")
#define WIDTH 16
#define ROUNDS_TO_BFLOAT16
#include "activations.h"
#include "amx.h"

namespace {

using jaxpool::Product;

constexpr int64_t kTile = 1024, kTileRow = 64, kRows = 16, kBlock = 2 * kRows, kColumns = Product::kPanel;

template <class Element>
constexpr bool kInt8 = std::is_same_v<Element, int8_t>;

template <class Element>
using Sum = std::conditional_t<kInt8<Element>, int32_t, float>;

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
      scale_[half] = call.int8 ? as_floats(call.scale + column, count) : Floats{};
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
        y = Activation::of(y + bias_[half]);
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

// Multiplies one block while it finishes the one before, a few rows a step: the matrix unit and the vector units work
// side by side.
template <class Element, class Activation, class Out>
class Pipeline {
 public:
  using Sums = Sum<Element>;

  explicit Pipeline(const Product& call) : call_(call) {}

  // One or two (`Tiles`) times 16 rows of x, `stride` bytes apart, by a panel.
  template <int Tiles>
  void multiply(const char* x, int64_t stride, const char* panel, int64_t steps, Block<Sums> block) {
    const Ending<Sums, Activation, Out> before(call_, before_);
    Sums* sums = sums_[odd_];
    const int64_t count = before_.count, share = (count + steps - 1) / steps;
    int64_t done = 0;
    memory_is_used();
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (Tiles > 1) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t step = 0; step < steps; ++step, x += kTileRow, panel += 2 * kTile) {
      _tile_loadd(4, x, stride);
      _tile_loadd(6, panel, kTileRow);
      _tile_loadd(7, panel + kTile, kTileRow);
      if constexpr (kInt8<Element>) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
      } else {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (Tiles > 1) {
        _tile_loadd(5, x + kRows * stride, stride);
        if constexpr (kInt8<Element>) {
          _tile_dpbssd(2, 5, 6);
          _tile_dpbssd(3, 5, 7);
        } else {
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
      const int64_t next = smaller(done + share, count);
      before.finish(done, next);
      done = next;
    }
    _tile_stored(0, sums, kColumns * 4);
    _tile_stored(1, sums + kRows, kColumns * 4);
    if constexpr (Tiles > 1) {
      _tile_stored(2, sums + kRows * kColumns, kColumns * 4);
      _tile_stored(3, sums + kRows * kColumns + kRows, kColumns * 4);
    }
    block.sums = sums;
    before_ = block;
    odd_ = !odd_;
  }

  void end() { Ending<Sums, Activation, Out>(call_, before_).finish(0, before_.count); }

 private:
  const Product& call_;
  Block<Sums> before_ = {};
  bool odd_ = false;
  alignas(64) Sums sums_[2][kBlock * kColumns];
};

// Rows whose tiles would reach beyond the array, or into the next row, are copied first, with zeros behind them.
template <class Element, class Activation, class Out>
void compute(const Product& call, int64_t first_row, int64_t first_column) {
  const int64_t width = call.inputs * sizeof(Element), steps = (width + kTileRow - 1) / kTileRow;
  const int64_t last_row = smaller(first_row + jaxpool::kProductRows, call.rows);
  const int64_t last_column = smaller(first_column + jaxpool::kProductColumns, call.outputs);
  Pipeline<Element, Activation, Out> pipeline(call);
  for (int64_t row = first_row; row < last_row; row += kBlock) {
    const int64_t count = smaller(kBlock, last_row - row);
    const char* x = static_cast<const char*>(call.x) + row * width;
    int64_t stride = width;
    if (count % kRows || width % kTileRow) {
      stride = steps * kTileRow;
      char* copy = jaxpool::workspace(kBlock * stride);
      memset(copy, 0, kBlock * stride);
      for (int64_t i = 0; i < count; ++i) memcpy(copy + i * stride, x + i * width, width);
      x = copy;
    }
    for (int64_t column = first_column; column < last_column; column += kColumns) {
      const char* panel = static_cast<const char*>(call.panels) + column / kColumns * steps * 2 * kTile;
      const Block<Sum<Element>> block = {nullptr, row, column, count};
      if (count > kRows)
        pipeline.template multiply<2>(x, stride, panel, steps, block);
      else
        pipeline.template multiply<1>(x, stride, panel, steps, block);
    }
  }
  pipeline.end();
}

using Compute = void (*)(const Product&, int64_t first_row, int64_t first_column);

// By the operands' dtype, to float32 and to bfloat16.
template <class Activation>
constexpr Compute kBy[2][2] = {{compute<BFloat16, Activation, float>, compute<BFloat16, Activation, BFloat16>},
                               {compute<int8_t, Activation, float>, compute<int8_t, Activation, BFloat16>}};

}  // namespace

void jaxpool::amx(const Product& call, int64_t first_row, int64_t first_column) {
  // In the order of jaxpool::Activation.
  static constexpr decltype(&kBy<Identity>) kCompute[] = {&kBy<Identity>,  &kBy<Gelu>, &kBy<GeluTanh>,
                                                          &kBy<QuickGelu>, &kBy<Silu>, &kBy<Relu>};
  const TileUse tiles;
  (*kCompute[static_cast<int>(call.activation)])[call.int8][call.bfloat16](call, first_row, first_column);
}
