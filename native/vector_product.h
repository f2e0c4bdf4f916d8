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

// How many rows the next block takes of so many. The last two share theirs: a few sums alone would wait for their own
// additions.
inline int64_t block_of(int64_t rows) { return rows > ROWS && rows < 2 * ROWS ? (rows + 1) / 2 : smaller(ROWS, rows); }

template <class Operands>
inline void multiply(const Product& call, const Piece& piece) {
  using Word = typename Operands::Word;
  using Layout = typename Operands::Layout;
  using Sums = Sum<Word>;
  static_assert(sizeof(Word) == sizeof(Sums));
  const int64_t panels = (piece.columns + kColumns - 1) / kColumns, blocks = (piece.rows + ROWS - 1) / ROWS;
  const int64_t words = Operands::words_of(call);
  // Sums that one part of the words completes need not be kept: a block's lie where the last one's did.
  const bool completes = words <= kDepth;
  const int64_t kept = (completes ? ROWS : panels * piece.rows) * kColumns, starting = round_up(piece.rows, W);
  Sums* all =
      reinterpret_cast<Sums*>(jaxpool::workspace((kept + starting + Operands::memory(call, piece)) * sizeof(Word)));
  Sums* starts = all + kept;
  Operands operands(call, piece, reinterpret_cast<Word*>(starts + starting));
  for (int64_t row = 0; row < piece.rows; ++row) starts[row] = operands.start(row);
  // Over a panel: the next one is fetched from memory meanwhile.
  const int64_t passes = blocks * (kColumns / (2 * W));
  for (int64_t word = 0; word < words; word += kDepth) {
    const int64_t depth = smaller(kDepth, words - word);
    operands.open(word, depth);
    for (int64_t number = 0; number < panels; ++number) {
      const Word* panel = operands.panel(number);
      Ahead ahead = {operands.stored(number + 1), (Operands::kBytes + passes - 1) / passes};
      for (int64_t row = 0, count; row < piece.rows; row += count) {
        count = block_of(piece.rows - row);
        Sums* sums = completes ? all : all + (number * piece.rows + row) * kColumns;
        for (int64_t half = 0; half < kColumns; half += 2 * W) {
          const auto add_to = [&](auto begin) {
            product_of<ROWS, Layout>(count, begin, operands.row(row), operands.stride(), panel + half,
                                     panel + half + Layout::kRight, depth, sums + half, kColumns, ahead);
          };
          if (word == 0)
            add_to(FromStarts{starts + row});
          else
            add_to(FromSums{sums + half, kColumns});
          ahead.from += depth * ahead.bytes;  // as far as the product's own copy has come
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
