// Tiles of float32 products, whatever the arrays' dtype: each step multiplies one number of several queries with two
// registers of keys or of values.
#pragma once

#include "attend.h"

namespace {

// out [M, 2W] = a [M, depth] · b, of which two panels of [depth, W] lie `panel` numbers apart.
template <int M>
inline void product(const float* a, int64_t a_stride, const float* b, int64_t panel, int64_t depth, float* out,
                    int64_t out_stride) {
  Floats sums[M][2] = {};
  for (int64_t step = 0; step < depth; ++step) {
    const Floats left = load<Floats>(b + step * W), right = load<Floats>(b + panel + step * W);
#pragma GCC unroll 16
    for (int row = 0; row < M; ++row) {
      const float x = a[row * a_stride + step];
      sums[row][0] += x * left;
      sums[row][1] += x * right;
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < M; ++row) {
    store(out + row * out_stride, sums[row][0]);
    store(out + row * out_stride + W, sums[row][1]);
  }
}

// Calls product<count>, for a count from 1 to M.
template <int M, class... Arguments>
inline void product_of(int64_t count, Arguments... arguments) {
  if constexpr (M > 1) {
    if (count < M) return product_of<M - 1>(count, arguments...);
  }
  product<M>(arguments...);
}

template <class Element>
class FloatTiles {
 public:
  static constexpr int64_t kQueries = ROWS, kKeys = 2 * W;
  static constexpr int kTerms = 7;

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
      product_of<kQueries>(count, queries_, wide_, keys_ + key * wide_, W * wide_, call_.width, scores_ + key, stride_);
  }

  void mix(int64_t count, Range seen) {
    for (int64_t feature = 0; feature < wide_; feature += 2 * W)
      product_of<kQueries>(count, scores_ + seen.first, stride_, values_ + feature * stride_ + seen.first * W,
                           W * stride_, seen.last - seen.first, mixed_ + feature, wide_);
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
