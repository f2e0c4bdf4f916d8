// Dense layers in bfloat16 and in 8-bit integers by AMX.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#pragma GCC target("amx-tile,amx-bf16,amx-int8,prefer-vector-width=512")
#define WIDTH 16
#define ROUNDS_TO_BFLOAT16
#include "amx.h"
#include "product.h"

namespace {

using jaxpool::Piece;

constexpr int64_t kBlock = 2 * kSide;  // rows

template <class Element>
constexpr bool kInt8 = std::is_same_v<Element, int8_t>;

template <class Element>
using Sum = std::conditional_t<kInt8<Element>, int32_t, float>;

// Whether what a step finishes is done in two lumps: in one, its many instructions would keep the next step's products
// waiting. Steps of 8-bit integers are so long that a second lump only costs.
template <class Element, class Activation>
constexpr bool kInHalves = !kInt8<Element> && !std::is_same_v<Activation, Identity>;

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
    zero_sums<Tiles>();
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
      const int64_t next = smaller(done + share, count);
      const int64_t half = kInHalves<Element, Activation> ? smaller(done + (share + 1) / 2, next) : done;
      before.finish(done, half);
      if constexpr (Tiles > 1) {
        _tile_loadd(5, x + kSide * stride, stride);
        if constexpr (kInt8<Element>) {
          _tile_dpbssd(2, 5, 6);
          _tile_dpbssd(3, 5, 7);
        } else {
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
      before.finish(half, next);
      done = next;
    }
    store_sums<Tiles>(sums, kColumns * 4);
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
template <class Element>
struct Amx {
  template <class Activation, class Out>
  struct Compute {
    static void run(const Product& call, Piece piece) {
      const int64_t width = call.inputs * sizeof(Element), steps = (width + kTileRow - 1) / kTileRow;
      const int64_t last_row = piece.row + piece.rows, last_column = piece.column + piece.columns;
      Pipeline<Element, Activation, Out> pipeline(call);
      for (int64_t row = piece.row; row < last_row; row += kBlock) {
        const int64_t count = smaller(kBlock, last_row - row);
        const char* x = static_cast<const char*>(call.x) + row * width;
        int64_t stride = width;
        if (count % kSide || width % kTileRow) {
          stride = steps * kTileRow;
          char* copy = jaxpool::workspace(kBlock * stride);
          memset(copy, 0, kBlock * stride);
          for (int64_t i = 0; i < count; ++i) memcpy(copy + i * stride, x + i * width, width);
          x = copy;
        }
        for (int64_t column = piece.column; column < last_column; column += kColumns) {
          const char* panel = static_cast<const char*>(call.panels) + column / kColumns * steps * 2 * kTile;
          const Block<Sum<Element>> block = {nullptr, row, column, count};
          if (count > kSide)
            pipeline.template multiply<2>(x, stride, panel, steps, block);
          else
            pipeline.template multiply<1>(x, stride, panel, steps, block);
        }
      }
      pipeline.end();
    }
  };
};

}  // namespace

void jaxpool::amx(const Product& call, const Piece& piece) {
  const TileUse tiles;
  if (call.dtype == Product::kInt8)
    dispatch<Amx<int8_t>::Compute>(call, piece);
  else
    dispatch<Amx<BFloat16>::Compute>(call, piece);
}
