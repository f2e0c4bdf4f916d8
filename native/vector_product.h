// Dense layers on a vector unit: blocks of ROWS rows by a panel, whose sums are held in registers over `kDepth` words.
#pragma once

#include "operands.h"

namespace {

template <class Sums>
struct Finish {
  template <class Activation, class Out>
  struct Of {
    static void run(const Product& call, Block<Sums> block) {
      Ending<Sums, Activation, Out>(call, block).finish(0, block.count);
    }
  };
};

template <class Operands>
inline void multiply(const Product& call, const Piece& piece) {
  using Word = typename Operands::Word;
  using Layout = typename Operands::Layout;
  using Sums = Sum<Word>;
  static_assert(sizeof(Word) == sizeof(Sums));
  const int64_t panels = (piece.columns + kColumns - 1) / kColumns, size = panels * piece.rows * kColumns;
  Sums* all = reinterpret_cast<Sums*>(jaxpool::workspace((size + Operands::memory(call, piece)) * sizeof(Word)));
  Operands operands(call, piece, reinterpret_cast<Word*>(all + size));
  for (int64_t row = 0; row < piece.rows; ++row) {
    const Lanes<Sums> start = operands.start(row) + Lanes<Sums>{};
    for (int64_t number = 0; number < panels; ++number) {
      for (int64_t column = 0; column < kColumns; column += W)
        store(all + (number * piece.rows + row) * kColumns + column, start);
    }
  }
  const int64_t words = operands.words();
  // Over a panel: the next one is fetched from memory meanwhile.
  const int64_t passes = (piece.rows + ROWS - 1) / ROWS * (kColumns / (2 * W));
  for (int64_t word = 0; word < words; word += kDepth) {
    const int64_t depth = smaller(kDepth, words - word);
    operands.open(word, depth);
    for (int64_t number = 0; number < panels; ++number) {
      const Word* panel = operands.panel(number);
      Ahead ahead = {operands.stored(number + 1), (Operands::kBytes + passes - 1) / passes};
      for (int64_t row = 0; row < piece.rows; row += ROWS) {
        const int64_t count = smaller(ROWS, piece.rows - row);
        Sums* sums = all + (number * piece.rows + row) * kColumns;
        for (int64_t half = 0; half < kColumns; half += 2 * W) {
          product_of<ROWS, Layout, true>(count, operands.row(row), operands.stride(), panel + half,
                                         panel + half + Layout::kRight, depth, sums + half, kColumns, ahead);
          ahead.from += depth * ahead.bytes;
        }
        if (word + depth < words) continue;
        const Block<Sums> block = {sums, piece.row + row, piece.column + number * kColumns, count};
        dispatch<Finish<Sums>::template Of>(call, block);
      }
    }
  }
}

// What any vector unit can do.
inline void multiply_widened(const Product& call, const Piece& piece) {
  switch (call.dtype) {
    case Product::kFloat32:
      return multiply<InPlace>(call, piece);
    case Product::kBFloat16:
      return multiply<Widened<BFloat16>>(call, piece);
    case Product::kInt8:
      return multiply<Widened<int8_t>>(call, piece);
  }
}

}  // namespace
