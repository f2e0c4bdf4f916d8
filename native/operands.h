// The operands of a dense layer as a vector unit multiplies them, word by word: where they lie, or what is narrower
// than the words after it has been widened, a part of it at a time.
#pragma once

#include "block.h"
#include "product.h"

namespace {

using jaxpool::Piece;

constexpr int64_t kDepth = jaxpool::Product::kDepth;

// Those that are multiplied where they lie: rows of `words` words, and panels of as many.
template <class Word_, class Layout_>
class Stored {
 public:
  using Word = Word_;
  using Layout = Layout_;
  static constexpr int64_t kBytes = kColumns * sizeof(Word);  // of a panel, for each word

  Stored(const void* x, const Product& call, const Piece& piece, int64_t words)
      : words_(words),
        x_(static_cast<const Word*>(x)),
        panels_(static_cast<const Word*>(call.panels) + piece.column * words) {}

  int64_t stride() const { return words_; }
  void open(int64_t first, int64_t) { first_ = first; }
  const Word* row(int64_t number) const { return x_ + number * words_ + first_; }
  const Word* panel(int64_t number) const { return panels_ + (number * words_ + first_) * kColumns; }
  const char* stored(int64_t number) const { return reinterpret_cast<const char*>(panel(number)); }

 private:
  const int64_t words_;
  const Word *x_, *panels_;
  int64_t first_ = 0;
};

class InPlace : public Stored<float, Rows<kColumns>> {
 public:
  static int64_t memory(const Product&, const Piece&) { return 0; }
  static int64_t words_of(const Product& call) { return call.inputs; }
  static float start(int64_t) { return 0; }

  InPlace(const Product& call, const Piece& piece, Word*)
      : Stored(static_cast<const float*>(call.x) + piece.row * call.inputs, call, piece, call.inputs) {}
};

// Words that are the parts of the kernel's tiles. Rows of x that do not fill their last tile are copied first, with
// zeros behind them.
template <class Word>
class Tiled : public Stored<Word, TileRows> {
 public:
  static int64_t memory(const Product& call, const Piece& piece) { return piece.rows * words_of(call); }
  static int64_t words_of(const Product& call) { return round_up(call.width(), 64) / int64_t{sizeof(Word)}; }

  Tiled(const Product& call, const Piece& piece, Word* memory)
      : Stored<Word, TileRows>(whole(call, piece, memory), call, piece, words_of(call)) {}

  // Of a whole row: asked before a part is opened.
  Sum<Word> start(int64_t number) const { return Word::start(this->row(number), this->stride()); }

 private:
  static const void* whole(const Product& call, const Piece& piece, Word* memory) {
    const int64_t width = call.width(), row_bytes = words_of(call) * sizeof(Word);
    const char* x = static_cast<const char*>(call.x) + piece.row * width;
    if (width == row_bytes) return x;
    for (int64_t row = 0; row < piece.rows; ++row) {
      char* to = reinterpret_cast<char*>(memory) + row * row_bytes;
      memcpy(to, x + row * width, width);
      memset(to + width, 0, row_bytes - width);
    }
    return memory;
  }
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
  static int64_t words_of(const Product& call) { return (call.width() + kBytes - 1) / kBytes * kWords; }

  Widened(const Product& call, const Piece& piece, Word* memory)
      : width_(call.width()),
        steps_(words_of(call) / kWords),
        count_(piece.rows),
        panel_(memory),
        rows_(memory + kDepth * kColumns) {
    x_ = static_cast<const char*>(call.x) + piece.row * width_;
    tiles_ = static_cast<const char*>(call.panels) + piece.column * steps_ * kBytes;
  }

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
