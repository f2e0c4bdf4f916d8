// Attention in bfloat16 by AMX.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16,prefer-vector-width=512")
#define WIDTH 16
#define ROUNDS_TO_BFLOAT16
#include "amx.h"
#include "attend.h"

namespace {

inline void store_weights(BFloat16* to, Floats from) { store(to, rounded(from)); }

// A product takes rows of 32 numbers, and columns in pairs of rows.
constexpr int64_t kRows = 16, kDepth = 32;

// out [16, 32] = a [16, depth] · b, of which two panels of [depth / 2, 16, 2] lie `panel` numbers apart.
inline void product(const BFloat16* a, int64_t a_stride, const BFloat16* b, int64_t panel, int64_t depth, float* out,
                    int64_t out_stride) {
  memory_is_used();
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t step = 0; step < depth; step += kDepth) {
    _tile_loadd(2, a + step, a_stride * sizeof(BFloat16));
    _tile_loadd(3, b + step * kRows, 64);
    _tile_loadd(4, b + panel + step * kRows, 64);
    _tile_dpbf16ps(0, 2, 3);
    _tile_dpbf16ps(1, 2, 4);
  }
  _tile_stored(0, out, out_stride * sizeof(float));
  _tile_stored(1, out + kRows, out_stride * sizeof(float));
}

class AmxTiles {
 public:
  static constexpr int64_t kQueries = kRows, kKeys = 2 * kRows;
  static constexpr int kTerms = 5;

  AmxTiles(const Attention& call, int64_t length)
      : call_(call), length_(length), stride_(round_up(length, kKeys)), wide_(round_up(call.width, kDepth)) {
    const int64_t panels = stride_ * wide_, block = kRows * wide_;
    const int64_t floats = kRows * stride_ + block, halves = 2 * panels + block + kRows * stride_;
    scores_ = reinterpret_cast<float*>(jaxpool::workspace(floats * sizeof(float) + halves * sizeof(BFloat16)));
    mixed_ = scores_ + kRows * stride_;
    keys_ = reinterpret_cast<BFloat16*>(mixed_ + block);
    values_ = keys_ + panels;
    queries_ = values_ + panels;
    weights_ = queries_ + block;
    memset(queries_, 0, block * sizeof(BFloat16));
  }

  // Keys as panels [wide / 2, 16, 2] of 16 tokens, values as panels [stride / 2, 16, 2] of 16 features; zeros where
  // there is no token or no feature.
  void pack(int64_t at) {
    const BFloat16* k = static_cast<const BFloat16*>(call_.k) + at * call_.width;
    const BFloat16* v = static_cast<const BFloat16*>(call_.v) + at * call_.width;
    const int64_t token_stride = call_.kv_heads * call_.width;
    pack_panels(keys_, stride_, wide_ / 2,
                [&](int64_t token, int64_t pair) { return pairs(k + token * token_stride, token, 2 * pair); });
    for (int64_t token = 0; token < stride_; token += 2) {
      for (int64_t feature = 0; feature < wide_; feature += W) {
        const Ints first = singly(v + token * token_stride, token, feature);
        const Ints second = singly(v + (token + 1) * token_stride, token + 1, feature);
        store(values_ + feature * stride_ + token * kRows, first | second << 16);
      }
    }
  }

  void scores(int64_t at, int64_t count, Range seen) {
    const BFloat16* q = static_cast<const BFloat16*>(call_.q) + at;
    for (int64_t i = 0; i < count; ++i)
      memcpy(queries_ + i * wide_, q + i * call_.heads * call_.width, call_.width * sizeof(BFloat16));
    for (int64_t key = seen.first; key < seen.last; key += kKeys)
      product(queries_, wide_, keys_ + key * wide_, kRows * wide_, wide_, scores_ + key, stride_);
  }

  void mix(int64_t, Range seen) {
    for (int64_t feature = 0; feature < wide_; feature += 2 * kRows)
      product(weights_ + seen.first, stride_, values_ + feature * stride_ + seen.first * kRows, kRows * stride_,
              seen.last - seen.first, mixed_ + feature, wide_);
  }

  float* scores_of(int64_t query) { return scores_ + query * stride_; }
  BFloat16* weights_of(int64_t query) { return weights_ + query * stride_; }
  const float* mixed_of(int64_t query) { return mixed_ + query * wide_; }

 private:
  // Pairs of a token's features.
  Floats pairs(const BFloat16* vector, int64_t token, int64_t feature) const {
    return load_part<Floats>(vector + feature,
                             token < length_ ? (call_.width - feature) * int64_t{sizeof(BFloat16)} : 0);
  }

  // A token's features, one a lane.
  Ints singly(const BFloat16* vector, int64_t token, int64_t feature) const {
    const int64_t count = token < length_ ? call_.width - feature : 0;
    return __builtin_convertvector(load_part<Halves>(vector + feature, count * int64_t{sizeof(BFloat16)}), Ints);
  }

  const Attention& call_;
  const int64_t length_, stride_, wide_;
  float *scores_, *mixed_;
  BFloat16 *keys_, *values_, *queries_, *weights_;
};

}  // namespace

void jaxpool::amx(const Attention& call, int64_t row, int64_t kv_head) {
  const TileUse tiles;
  attend<AmxTiles>(call, row, kv_head);
}
