// Tiles of float32 products, whatever the arrays' dtype: each step multiplies one number of several queries with two
// registers of keys or of values.
#pragma once

#include "attend.h"
#include "block.h"

namespace {

template <class Element>
class FloatTiles {
 public:
  static constexpr int64_t kQueries = ROWS, kKeys = 2 * W;
  static constexpr int kTerms = kExpTerms<float>;

  FloatTiles(const Attention& call, int64_t length)
      : call_(call), length_(length), stride_(round_up(length, kKeys)), wide_(round_up(call.width, 2 * W)) {
    const int64_t panels = stride_ * wide_, block = kQueries * wide_;
    keys_ = reinterpret_cast<float*>(jaxpool::workspace((2 * panels + 2 * block + kQueries * stride_) * sizeof(float)));
    values_ = keys_ + panels;
    queries_ = values_ + panels;
    mixed_ = queries_ + block;
    scores_ = mixed_ + block;
  }

  // Keys as panels [wide, W] of W tokens, values as panels [stride, W] of W features; zeros where there is no token or
  // no feature.
  void pack(int64_t at) {
    const Element* k = static_cast<const Element*>(call_.k) + at * call_.width;
    const Element* v = static_cast<const Element*>(call_.v) + at * call_.width;
    const int64_t token_stride = call_.kv_heads * call_.width;
    const auto floats = [&](const Element* from, int64_t token, int64_t feature) {
      return token < length_ ? as_floats(from + token * token_stride + feature, call_.width - feature) : Floats{};
    };
    pack_panels(keys_, stride_, wide_, [&](int64_t token, int64_t feature) { return floats(k, token, feature); });
    for (int64_t feature = 0; feature < wide_; feature += W) {
      for (int64_t token = 0; token < stride_; ++token)
        store(values_ + feature * stride_ + token * W, floats(v, token, feature));
    }
  }

  void scores(int64_t at, int64_t count, Range seen) {
    const Element* q = static_cast<const Element*>(call_.q) + at;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t feature = 0; feature < wide_; feature += W)
        store(queries_ + i * wide_ + feature,
              as_floats(q + i * call_.heads * call_.width + feature, call_.width - feature));
    }
    for (int64_t key = seen.first; key < seen.last; key += kKeys)
      product_of<kQueries, Rows<W>>(count, FromZero(), queries_, wide_, keys_ + key * wide_, keys_ + (key + W) * wide_,
                                    call_.width, scores_ + key, stride_, NothingAhead());
  }

  void mix(int64_t count, Range seen) {
    for (int64_t feature = 0; feature < wide_; feature += 2 * W) {
      const float* values = values_ + feature * stride_ + seen.first * W;
      product_of<kQueries, Rows<W>>(count, FromZero(), scores_ + seen.first, stride_, values, values + W * stride_,
                                    seen.last - seen.first, mixed_ + feature, wide_, NothingAhead());
    }
  }

  float* scores_of(int64_t query) { return scores_ + query * stride_; }
  float* weights_of(int64_t query) { return scores_of(query); }
  const float* mixed_of(int64_t query) { return mixed_ + query * wide_; }

 private:
  const Attention& call_;
  const int64_t length_, stride_, wide_;
  float *keys_, *values_, *queries_, *mixed_, *scores_;
};

inline void attend_in_float32(const Attention& call, int64_t row, int64_t kv_head) {
  (call.bfloat16 ? attend<FloatTiles<BFloat16>> : attend<FloatTiles<float>>)(call, row, kv_head);
}

}  // namespace
