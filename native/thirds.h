// Products of float32 by AMX, which multiplies bfloat16: each number is exactly the sum of three of those, eight digits
// each. Of the nine products of two numbers' parts the six that float32 can tell are summed.
//
// A step takes 32 numbers each of 32 rows and of 32 columns: of each side three parts of two tiles. A tile's row is of
// one row, or of one column's numbers; its words hold a number and the one 16 after it.
#pragma once

#include "amx.h"

namespace {

constexpr int64_t kNumbers = 32, kPart = 2 * kTile;
constexpr int kParts = 3;
constexpr int64_t kStep = kParts * kPart;

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

// A row's numbers, of which there are `count`, to its place in the tiles of a step; zeros for those that are missing.
inline void split_row(const float* from, int64_t count, int64_t row, char* step) {
  split(as_floats(from, count), as_floats(from + kSide, count - kSide), step + row % kNumbers * kTileRow);
}

template <int Tiles>
inline void load_rows(const char* part) {
  _tile_loadd(4, part, kTileRow);
  if constexpr (Tiles > 1) _tile_loadd(5, part + kTile, kTileRow);
}

inline void load_columns(const char* part) {
  _tile_loadd(6, part, kTileRow);
  _tile_loadd(7, part + kTile, kTileRow);
}

// Adds a step's products to the sums. Of the parts' numbers, counted from the largest, the sum is at most two. Calls
// `halfway` between them.
template <int Tiles, class Halfway>
inline void multiply_step(const char* rows, const char* columns, Halfway halfway) {
  load_rows<Tiles>(rows + 2 * kPart);
  load_columns(columns);
  multiply_tiles<Tiles>();
  load_rows<Tiles>(rows + kPart);
  multiply_tiles<Tiles>();
  load_columns(columns + kPart);
  multiply_tiles<Tiles>();
  halfway();
  load_rows<Tiles>(rows);
  multiply_tiles<Tiles>();
  load_columns(columns + 2 * kPart);
  multiply_tiles<Tiles>();
  load_columns(columns);
  multiply_tiles<Tiles>();
}

}  // namespace
