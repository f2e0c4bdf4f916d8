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

}  // namespace
