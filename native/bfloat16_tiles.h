// Tiles of products in bfloat16, for units that multiply pairs of numbers:
//   kQueries   queries that they take at a time
//   product(count, a, a_stride, b, panel, depth, out, out_stride)
//              out [count, 32] = a [count, depth] · b, of which two panels of [depth / 2, 16, 2] lie `panel` numbers
//              apart; depth is a multiple of 32. More rows may be read and written, up to kQueries.
#pragma once

#include "attend.h"

namespace {

inline void store_weights(BFloat16* to, Floats from) { store(to, rounded(from)); }

template <class Unit>
class BFloat16Tiles {
 public:
  static constexpr int64_t kQueries = Unit::kQueries, kKeys = 2 * W;
  static constexpr int kTerms = kExpTerms<BFloat16>;

  BFloat16Tiles(const Attention& call, int64_t length)
      : call_(call), length_(length), stride_(round_up(length, kKeys)), wide_(round_up(call.width, kKeys)) {
    const int64_t panels = stride_ * wide_, block = kQueries * wide_;
    const int64_t floats = kQueries * stride_ + block, halves = 2 * panels + block + kQueries * stride_;
    scores_ = reinterpret_cast<float*>(jaxpool::workspace(floats * sizeof(float) + halves * sizeof(BFloat16)));
    mixed_ = scores_ + kQueries * stride_;
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
        store(values_ + feature * stride_ + token * W, first | second << 16);
      }
    }
  }

  void scores(int64_t at, int64_t count, Range seen) {
    const BFloat16* q = static_cast<const BFloat16*>(call_.q) + at;
    for (int64_t i = 0; i < count; ++i)
      memcpy(queries_ + i * wide_, q + i * call_.heads * call_.width, call_.width * sizeof(BFloat16));
    for (int64_t key = seen.first; key < seen.last; key += kKeys)
      Unit::product(count, queries_, wide_, keys_ + key * wide_, W * wide_, wide_, scores_ + key, stride_);
  }

  void mix(int64_t count, Range seen) {
    for (int64_t feature = 0; feature < wide_; feature += 2 * W)
      Unit::product(count, weights_ + seen.first, stride_, values_ + feature * stride_ + seen.first * W, W * stride_,
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
