// Dense layers in float32 by AMX.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#pragma GCC target("amx-tile,amx-bf16,prefer-vector-width=512")
#define WIDTH 16
#define ROUNDS_TO_BFLOAT16
#include "product.h"
#include "thirds.h"

namespace {

using jaxpool::Piece;

constexpr int64_t kRows = 32;  // of x, in a block
// Steps that are summed over before the next: their tiles stay in the second cache.
constexpr int64_t kDepth = 12;

// How a piece is gone through: `chunks` of up to `depth` steps, and in each one panel after the other.
struct Walk {
  const Product& call;
  const Piece& piece;
  const int64_t blocks = (piece.rows + kRows - 1) / kRows;
  const int64_t panels = (piece.columns + kColumns - 1) / kColumns;
  const int64_t steps = (call.inputs + kNumbers - 1) / kNumbers;
  const int64_t depth = blocks == 1 ? steps : smaller(steps, kDepth);
  const int64_t chunks = (steps + depth - 1) / depth;
  // The steps of a panel that are kept as tiles: of one block, that which is multiplied; otherwise all.
  const int64_t kept = blocks == 1 ? 1 : depth;

  int64_t depth_of(int64_t chunk) const { return smaller(depth, steps - chunk * depth); }
};

// The panels' tiles, made a few words a call: the vector units do so while the matrix unit multiplies those before.
class PanelTiles {
 public:
  static int64_t bytes(const Walk& walk) { return 2 * walk.kept * kStep; }

  PanelTiles(const Walk& walk, char* memory) : walk_(walk), tiles_(memory), size_(2 * walk.kept), to_(memory) {
    enter();
  }

  // Tiles of a step; they are counted as they come.
  char* at(int64_t step) const { return tiles_ + step % size_ * kStep; }

  // Makes so many words, but none where tiles from step `used` on are.
  void make(int64_t words, int64_t used) {
    for (; words > 0 && chunk_ < walk_.chunks && step_ < used + size_; --words) {
      const int64_t half = word_ / kSide, row = word_ % kSide, input = input_ + row;
      const float* from = from_ + row * kColumns + half * kSide;
      const Floats first = input < walk_.call.inputs ? load<Floats>(from) : Floats{};
      const Floats second = input + kSide < walk_.call.inputs ? load<Floats>(from + kSide * kColumns) : Floats{};
      __builtin_prefetch(from + kNumbers * kColumns);
      __builtin_prefetch(from + (kNumbers + kSide) * kColumns);
      split(first, second, to_ + half * kTile + row * kTileRow);
      if (++word_ == kNumbers) next_step();
    }
  }

 private:
  void next_step() {
    word_ = 0;
    to_ = at(++step_);
    input_ += kNumbers;
    from_ += kNumbers * kColumns;
    if (++step_of_panel_ < walk_.depth_of(chunk_)) return;
    step_of_panel_ = 0;
    if (++panel_ == walk_.panels) {
      panel_ = 0;
      ++chunk_;
    }
    enter();
  }

  void enter() {
    input_ = chunk_ * walk_.depth * kNumbers;
    from_ = static_cast<const float*>(walk_.call.panels) +
            (walk_.piece.column + panel_ * kColumns) * walk_.call.inputs + input_ * kColumns;
  }

  const Walk& walk_;
  char* const tiles_;
  const int64_t size_;
  int64_t chunk_ = 0, panel_ = 0, step_of_panel_ = 0, step_ = 0, word_ = 0, input_;
  const float* from_;
  char* to_;
};

// Tiles of the rows of x, of a chunk; zeros where there is none.
class RowTiles {
 public:
  static int64_t bytes(const Walk& walk) { return walk.blocks * walk.depth * kStep; }

  RowTiles(const Walk& walk, char* memory) : walk_(walk), tiles_(memory) {}

  const char* at(int64_t block) const { return tiles_ + block * walk_.depth * kStep; }

  void make(int64_t chunk) {
    const int64_t inputs = walk_.call.inputs, first = chunk * walk_.depth * kNumbers, steps = walk_.depth_of(chunk);
    for (int64_t row = 0; row < walk_.blocks * kRows; ++row) {
      const float* from = static_cast<const float*>(walk_.call.x) + (walk_.piece.row + row) * inputs;
      char* to = tiles_ + row / kRows * walk_.depth * kStep;
      for (int64_t step = 0; step < steps; ++step) {
        const int64_t input = first + step * kNumbers, count = row < walk_.piece.rows ? inputs - input : 0;
        split_row(from + input, count, row, to + step * kStep);
      }
    }
  }

 private:
  const Walk& walk_;
  char* const tiles_;
};

template <class Activation, class Out>
class Compute {
 public:
  static void run(const Product& call, Piece piece) {
    const Walk walk{call, piece};
    // All blocks' sums if another chunk is added; otherwise those of the one that is multiplied and of the one before.
    const int64_t places = walk.chunks > 1 ? walk.panels * walk.blocks : 2, size = places * kRows * kColumns;
    char* const memory = jaxpool::workspace(size * sizeof(float) + PanelTiles::bytes(walk) + RowTiles::bytes(walk));
    float* const sums = reinterpret_cast<float*>(memory);
    PanelTiles panels(walk, memory + size * sizeof(float));
    RowTiles rows(walk, memory + size * sizeof(float) + PanelTiles::bytes(walk));
    panels.make(walk.kept * kNumbers, 0);
    Compute compute(call, panels, (kNumbers + walk.blocks - 1) / walk.blocks);
    for (int64_t chunk = 0, step = 0; chunk < walk.chunks; ++chunk) {
      rows.make(chunk);
      const int64_t steps = walk.depth_of(chunk);
      const bool adds = chunk > 0, ends = chunk + 1 == walk.chunks;
      for (int64_t panel = 0; panel < walk.panels; ++panel, step += steps) {
        for (int64_t block = 0; block < walk.blocks; ++block) {
          const int64_t row = block * kRows, count = smaller(kRows, piece.rows - row);
          float* const own = sums + (panel * walk.blocks + block) % places * kRows * kColumns;
          const auto multiply = count > kSide ? &Compute::multiply<2> : &Compute::multiply<1>;
          (compute.*multiply)(rows.at(block), step, steps, adds, own);
          compute.before_ = {own, piece.row + row, piece.column + panel * kColumns, ends ? count : 0};
        }
      }
    }
    compute.end();
  }

 private:
  Compute(const Product& call, PanelTiles& panels, int64_t words) : call_(call), panels_(panels), words_(words) {}

  template <int Tiles>
  void multiply(const char* x, int64_t first, int64_t steps, bool adds, float* sums) {
    const Ending<float, Activation, Out> before(call_, before_);
    const int64_t count = before_.count, share = (count + steps - 1) / steps;
    const bool one_kept = words_ == kNumbers;
    int64_t done = 0;
    memory_is_used();
    if (adds)
      load_sums<Tiles>(sums, kColumns * 4);
    else
      zero_sums<Tiles>();
    for (int64_t step = 0; step < steps; ++step, x += kStep) {
      multiply_step<Tiles>(x, panels_.at(first + step), [&] {
        const int64_t next = smaller(done + share, count);
        before.finish(done, next);
        done = next;
      });
      panels_.make(words_, one_kept ? first + step : first);
    }
    store_sums<Tiles>(sums, kColumns * 4);
    memory_is_used();
  }

  void end() const { Ending<float, Activation, Out>(call_, before_).finish(0, before_.count); }

  const Product& call_;
  PanelTiles& panels_;
  const int64_t words_;  // of the panels, a step
  Block<float> before_ = {};
};

}  // namespace

void jaxpool::amx_float32(const Product& call, const Piece& piece) {
  const TileUse tiles;
  dispatch<Compute>(call, piece);
}
