// Dense layers in float32 by AMX, which multiplies bfloat16: each number is exactly the sum of three of those, eight
// digits each. Of the nine products of two numbers' parts the six that float32 can tell are summed.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#pragma GCC target("amx-tile,amx-bf16,prefer-vector-width=512")
#define WIDTH 16
#define ROUNDS_TO_BFLOAT16
#include "amx.h"
#include "product.h"

namespace {

using jaxpool::Piece;

// A step takes 32 inputs of 32 rows of x, and of a panel: of each side three parts of two tiles. A tile's row is of one
// row of x, or one output; its words hold an input and the one 16 after it.
constexpr int64_t kInputs = 32, kRows = 32, kSide = 16, kTileRow = 64, kTile = 1024, kPart = 2 * kTile;
constexpr int kParts = 3;
constexpr int64_t kStep = kParts * kPart;
// Steps that are summed over before the next: their tiles stay in the second cache.
constexpr int64_t kDepth = 12;

typedef uint32_t Unsigned __attribute__((vector_size(4 * W)));

constexpr uint32_t kDigits = 0xffff0000;

// Numbers with the nearest of eight digits in the upper half of their bits, …
inline Unsigned nearest(Floats x) { return bits<Unsigned>(x) + 0x8000; }

// … what those leave of them, …
inline Floats rest(Floats x) { return x - bits<Floats>(nearest(x) & kDigits); }

// … and two numbers' digits as a word.
inline Unsigned word(Floats first, Floats second) { return nearest(first) >> 16 | (nearest(second) & kDigits); }

// Words' parts to their places, the largest first.
inline void split(Floats first, Floats second, char* to) {
#pragma GCC unroll 3
  for (int part = 0; part < kParts; ++part) {
    store(to + part * kPart, word(first, second));
    first = rest(first);
    second = rest(second);
  }
}

// How a piece is gone through: `chunks` of up to `depth` steps, and in each one panel after the other.
struct Walk {
  const Product& call;
  const Piece& piece;
  const int64_t blocks = (piece.rows + kRows - 1) / kRows;
  const int64_t panels = (piece.columns + kColumns - 1) / kColumns;
  const int64_t steps = (call.inputs + kInputs - 1) / kInputs;
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
      __builtin_prefetch(from + kInputs * kColumns);
      __builtin_prefetch(from + (kInputs + kSide) * kColumns);
      split(first, second, to_ + half * kTile + row * kTileRow);
      if (++word_ == kInputs) next_step();
    }
  }

 private:
  void next_step() {
    word_ = 0;
    to_ = at(++step_);
    input_ += kInputs;
    from_ += kInputs * kColumns;
    if (++step_of_panel_ < walk_.depth_of(chunk_)) return;
    step_of_panel_ = 0;
    if (++panel_ == walk_.panels) {
      panel_ = 0;
      ++chunk_;
    }
    enter();
  }

  void enter() {
    input_ = chunk_ * walk_.depth * kInputs;
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
    const int64_t inputs = walk_.call.inputs, first = chunk * walk_.depth * kInputs, steps = walk_.depth_of(chunk);
    for (int64_t row = 0; row < walk_.blocks * kRows; ++row) {
      const float* from = static_cast<const float*>(walk_.call.x) + (walk_.piece.row + row) * inputs;
      char* to = tiles_ + row / kRows * walk_.depth * kStep + row % kRows * kTileRow;
      for (int64_t step = 0; step < steps; ++step) {
        const int64_t input = first + step * kInputs, count = row < walk_.piece.rows ? inputs - input : 0;
        split(as_floats(from + input, count), as_floats(from + input + kSide, count - kSide), to + step * kStep);
      }
    }
  }

 private:
  const Walk& walk_;
  char* const tiles_;
};

// The tiles' registers: 0 to 3 have sums, 4 and 5 rows, 6 and 7 columns.
template <int Tiles>
inline void load_rows(const char* part) {
  _tile_loadd(4, part, kTileRow);
  if constexpr (Tiles > 1) _tile_loadd(5, part + kTile, kTileRow);
}

inline void load_columns(const char* part) {
  _tile_loadd(6, part, kTileRow);
  _tile_loadd(7, part + kTile, kTileRow);
}

template <int Tiles>
inline void multiply_parts() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (Tiles > 1) {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// Of the parts' numbers, counted from the largest, the sum is at most two. Calls `halfway` between them.
template <int Tiles, class Halfway>
inline void multiply_step(const char* x, const char* panel, Halfway halfway) {
  load_rows<Tiles>(x + 2 * kPart);
  load_columns(panel);
  multiply_parts<Tiles>();
  load_rows<Tiles>(x + kPart);
  multiply_parts<Tiles>();
  load_columns(panel + kPart);
  multiply_parts<Tiles>();
  halfway();
  load_rows<Tiles>(x);
  multiply_parts<Tiles>();
  load_columns(panel + 2 * kPart);
  multiply_parts<Tiles>();
  load_columns(panel);
  multiply_parts<Tiles>();
}

template <int Tiles>
inline void load_sums(const float* sums) {
  _tile_loadd(0, sums, kColumns * 4);
  _tile_loadd(1, sums + kSide, kColumns * 4);
  if constexpr (Tiles > 1) {
    _tile_loadd(2, sums + kSide * kColumns, kColumns * 4);
    _tile_loadd(3, sums + kSide * kColumns + kSide, kColumns * 4);
  }
}

template <int Tiles>
inline void store_sums(float* sums) {
  _tile_stored(0, sums, kColumns * 4);
  _tile_stored(1, sums + kSide, kColumns * 4);
  if constexpr (Tiles > 1) {
    _tile_stored(2, sums + kSide * kColumns, kColumns * 4);
    _tile_stored(3, sums + kSide * kColumns + kSide, kColumns * 4);
  }
}

inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

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
    panels.make(walk.kept * kInputs, 0);
    Compute compute(call, panels, (kInputs + walk.blocks - 1) / walk.blocks);
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
    compute.finish(0, compute.before_.count);
  }

 private:
  Compute(const Product& call, PanelTiles& panels, int64_t words) : call_(call), panels_(panels), words_(words) {}

  template <int Tiles>
  void multiply(const char* x, int64_t first, int64_t steps, bool adds, float* sums) {
    const Ending<float, Activation, Out> before(call_, before_);
    const int64_t count = before_.count, share = (count + steps - 1) / steps;
    const bool one_kept = words_ == kInputs;
    int64_t done = 0;
    memory_is_used();
    if (adds)
      load_sums<Tiles>(sums);
    else
      zero_sums();
    for (int64_t step = 0; step < steps; ++step, x += kStep) {
      multiply_step<Tiles>(x, panels_.at(first + step), [&] {
        const int64_t next = smaller(done + share, count);
        before.finish(done, next);
        done = next;
      });
      panels_.make(words_, one_kept ? first + step : first);
    }
    store_sums<Tiles>(sums);
    memory_is_used();
  }

  void finish(int64_t first, int64_t last) const { Ending<float, Activation, Out>(call_, before_).finish(first, last); }

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
