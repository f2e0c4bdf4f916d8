// What the files for AMX share: a tile has 16 rows of 64 bytes. The file that includes it says so to the compiler.
#pragma once

#include "lanes.h"

namespace {

// All tiles whole.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// A thread's tiles, while this lives.
class TileUse {
 public:
  TileUse() {
    static constexpr TileConfig config;
    _tile_loadconfig(&config);
  }
  ~TileUse() { _tile_release(); }
};

// GCC's tile instructions do not say that they read and write memory.
inline void memory_is_used() { asm volatile("" ::: "memory"); }

constexpr int64_t kSide = 16, kTileRow = 64, kTile = kSide * kTileRow;

// A block of sums is one or two (`Tiles`) times 16 rows by 32 columns, in tiles 0 to 3; 4 and 5 are for what the rows
// are multiplied from, 6 and 7 for the columns.
template <int Tiles>
inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (Tiles > 1) {
    _tile_zero(2);
    _tile_zero(3);
  }
}

// From rows that are `stride` bytes apart.
template <int Tiles>
inline void load_sums(const void* sums, int64_t stride) {
  const char* from = static_cast<const char*>(sums);
  _tile_loadd(0, from, stride);
  _tile_loadd(1, from + kTileRow, stride);
  if constexpr (Tiles > 1) {
    _tile_loadd(2, from + kSide * stride, stride);
    _tile_loadd(3, from + kSide * stride + kTileRow, stride);
  }
}

template <int Tiles>
inline void store_sums(void* sums, int64_t stride) {
  char* to = static_cast<char*>(sums);
  _tile_stored(0, to, stride);
  _tile_stored(1, to + kTileRow, stride);
  if constexpr (Tiles > 1) {
    _tile_stored(2, to + kSide * stride, stride);
    _tile_stored(3, to + kSide * stride + kTileRow, stride);
  }
}

// Sums of products of bfloat16.
template <int Tiles>
inline void multiply_tiles() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (Tiles > 1) {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

}  // namespace
