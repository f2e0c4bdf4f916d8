// The operands of a dense layer as a vector unit multiplies them, word by word: where they lie, or what is narrower
// than the words after it has been widened, a part of it at a time.
#pragma once

#include "block.h"
#include "product.h"

namespace {

using jaxpool::Piece;

// Words that are summed over before the next: a piece's part of the kernel, and a block's of x, stay in the cache.
constexpr int64_t kDepth = 384;

class InPlace {
 public:
  using Word = float;
  using Layout = Rows<kColumns>;
  static constexpr int64_t kBytes = kColumns * sizeof(float);  // of a panel, for each word
  static int64_t memory(const Product&, const Piece&) { return 0; }

  InPlace(const Product& call, const Piece& piece, Word*) : inputs_(call.inputs) {
    x_ = static_cast<const float*>(call.x) + piece.row * inputs_;
    panels_ = static_cast<const float*>(call.panels) + piece.column * inputs_;
  }

  int64_t words() const { return inputs_; }
  int64_t stride() const { return inputs_; }
  void open(int64_t first, int64_t) { first_ = first; }
  const Word* row(int64_t number) const { return x_ + number * inputs_ + first_; }
  const Word* panel(int64_t number) const { return panels_ + (number * inputs_ + first_) * kColumns; }
  const char* stored(int64_t number) const { return reinterpret_cast<const char*>(panel(number)); }
  static float start(int64_t) { return 0; }

 private:
  const int64_t inputs_;
  const float *x_, *panels_;
  int64_t first_ = 0;
};

// Words that are the parts of the kernel's tiles. Rows of x that do not fill their last tile are copied first, with
// zeros behind them.
template <class Word_>
class Tiled {
 public:
  using Word = Word_;
  using Layout = TileRows;
  static constexpr int64_t kBytes = kColumns * sizeof(Word), kTileRow = 64;
  static int64_t memory(const Product& call, const Piece& piece) { return piece.rows * steps(call) * Layout::kSide; }

  Tiled(const Product& call, const Piece& piece, Word* memory) : words_(steps(call) * Layout::kSide) {
    const int64_t width = call.width(), row_bytes = words_ * sizeof(Word);
    const char* x = static_cast<const char*>(call.x) + piece.row * width;
    tiles_ = static_cast<const Word*>(call.panels) + piece.column * words_;
    x_ = reinterpret_cast<const Word*>(x);
    if (width == row_bytes) return;
    x_ = memory;
    for (int64_t row = 0; row < piece.rows; ++row) {
      char* to = reinterpret_cast<char*>(memory + row * words_);
      memcpy(to, x + row * width, width);
      memset(to + width, 0, row_bytes - width);
    }
  }

  int64_t words() const { return words_; }
  int64_t stride() const { return words_; }
  void open(int64_t first, int64_t) { first_ = first; }
  const Word* row(int64_t number) const { return x_ + number * words_ + first_; }
  const Word* panel(int64_t number) const { return tiles_ + (number * words_ + first_) * kColumns; }
  const char* stored(int64_t number) const { return reinterpret_cast<const char*>(panel(number)); }
  Sum<Word> start(int64_t row) const { return Word::start(x_ + row * words_, words_); }

 private:
  static int64_t steps(const Product& call) { return (call.width() + kTileRow - 1) / kTileRow; }

  const int64_t words_;
  const Word *x_, *tiles_;
  int64_t first_ = 0;
};

// The two words that 4 bytes hold.
template <class Element>
struct Narrow;

template <>
struct Narrow<BFloat16> {
  using Word = float;
  static Ints even(Ints pairs) { return pairs << 16; }
  static Ints odd(Ints pairs) { return pairs & -0x10000; }
};

template <>
struct Narrow<int8_t> {
  typedef int16_t Shorts __attribute__((vector_size(4 * W)));
  using Word = int32_t;
  static Ints even(Ints fours) { return bits<Ints>(bits<Shorts>(fours) << 8 >> 8); }
  static Ints odd(Ints fours) { return bits<Ints>(bits<Shorts>(fours) >> 8); }
};

// A step of the kernel is as wide as a tile's rows: 64 bytes of inputs, 32 words. First those of even number, then the
// others, on both sides alike.
template <class Element>
class Widened {
 public:
  using Word = typename Narrow<Element>::Word;
  using Layout = Rows<kColumns>;
  static constexpr int64_t kBytes = 64, kWords = 32, kTile = 16;
  static int64_t memory(const Product&, const Piece& piece) { return kDepth * (kColumns + piece.rows); }

  Widened(const Product& call, const Piece& piece, Word* memory)
      : width_(call.width()),
        steps_((width_ + kBytes - 1) / kBytes),
        count_(piece.rows),
        panel_(memory),
        rows_(memory + kDepth * kColumns) {
    x_ = static_cast<const char*>(call.x) + piece.row * width_;
    tiles_ = static_cast<const char*>(call.panels) + piece.column * steps_ * kBytes;
  }

  int64_t words() const { return steps_ * kWords; }
  int64_t stride() const { return kDepth; }

  void open(int64_t first, int64_t depth) {
    first_ = first / kWords;
    open_ = depth / kWords;
    for (int64_t row = 0; row < count_; ++row) {
      for (int64_t word = 0; word < open_ * kTile; word += W) {
        const int64_t at = first_ * kBytes + word * 4;
        split(load_part<Ints>(x_ + row * width_ + at, width_ - at),
              rows_ + row * kDepth + word / kTile * kWords + word % kTile, kTile);
      }
    }
  }

  const Word* row(int64_t number) const { return rows_ + number * kDepth; }

  const Word* panel(int64_t number) const {
    for (int64_t step = 0; step < open_; ++step) {
      const char* tiles = stored(number) + step * kBytes * kColumns;
      for (int64_t column = 0; column < kColumns; column += W) {
        const char* from = tiles + column / kTile * kTile * kBytes + column % kTile * 4;
        Word* to = panel_ + step * kWords * kColumns + column;
        for (int64_t row = 0; row < kTile; ++row)
          split(load<Ints>(from + row * kBytes), to + row * kColumns, kTile * kColumns);
      }
    }
    return panel_;
  }

  const char* stored(int64_t number) const { return tiles_ + (number * steps_ + first_) * kBytes * kColumns; }
  static Word start(int64_t) { return 0; }

 private:
  static void split(Ints both, Word* even, int64_t to_odd) {
    store(even, Narrow<Element>::even(both));
    store(even + to_odd, Narrow<Element>::odd(both));
  }

  const int64_t width_, steps_, count_;
  Word *const panel_, *const rows_;
  const char *x_, *tiles_;
  int64_t first_ = 0, open_ = 0;
};

}  // namespace
