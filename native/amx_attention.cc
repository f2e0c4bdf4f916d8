// Attention in bfloat16 by AMX.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16,prefer-vector-width=512")
#define WIDTH 16
#define ROUNDS_TO_BFLOAT16
#include "amx.h"
#include "bfloat16_tiles.h"

namespace {

struct MatrixUnit {
  static constexpr int64_t kQueries = 16, kDepth = 32;

  static void product(int64_t, const BFloat16* a, int64_t a_stride, const BFloat16* b, int64_t panel, int64_t depth,
                      float* out, int64_t out_stride) {
    memory_is_used();
    zero_sums<1>();
    for (int64_t step = 0; step < depth; step += kDepth) {
      _tile_loadd(4, a + step, a_stride * sizeof(BFloat16));
      _tile_loadd(6, b + step * W, kTileRow);
      _tile_loadd(7, b + panel + step * W, kTileRow);
      multiply_tiles<1>();
    }
    store_sums<1>(out, out_stride * sizeof(float));
  }
};

}  // namespace

void jaxpool::amx(const Attention& call, int64_t row, int64_t kv_head) {
  const TileUse tiles;
  attend<BFloat16Tiles<MatrixUnit>>(call, row, kv_head);
}
