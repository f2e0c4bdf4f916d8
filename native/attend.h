// The algorithm, over tiles that an instruction set computes: one sequence of a row after another, one block of queries
// after another, whose scores stay in the cache. A sequence's result does not depend on where in a row it stands.
//
// `Tiles` holds one sequence's keys and values in the form that its products take. `at` is a vector's place in its
// array.
//   kQueries                  queries of a block
//   kKeys                     keys of a tile: ranges of keys are widened to multiples of it
//   kTerms                    of the series of exp, as the weights' dtype deserves
//   pack(at)                  takes the keys and values of all tokens
//   scores(at, count, seen)   computes `count` queries' products with the keys seen
//   mix(count, seen)          computes their weights' product with the values
//   scores_of(i), weights_of(i), mixed_of(i)   where query i's are
#pragma once

#include "lanes.h"

namespace {

using jaxpool::Attention;

// Keys from `first` up to `last`.
struct Range {
  int64_t first, last;
};

inline void store_weights(float* to, Floats from) { store(to, from); }

// weights = 2^(scale · (scores − their largest)) over a range; returns their sum. The difference comes first: it is
// exact where it matters, however large the scores.
template <int Terms, class Weight>
inline float softmax(const float* scores, Weight* weights, Range seen, float scale) {
  // A tile of keys is two registers or four: as many chains of maxima and of sums.
  Floats most[2] = {load<Floats>(scores + seen.first), load<Floats>(scores + seen.first + W)}, total[2] = {};
  for (int64_t key = seen.first + 2 * W; key < seen.last; key += 2 * W) {
    for (int half = 0; half < 2; ++half) {
      const Floats next = load<Floats>(scores + key + half * W);
      most[half] = next > most[half] ? next : most[half];
    }
  }
  const float top = largest(most[1] > most[0] ? most[1] : most[0]);
  for (int64_t key = seen.first; key < seen.last; key += 2 * W) {
    for (int half = 0; half < 2; ++half) {
      const Floats weight = exp2<Terms>((load<Floats>(scores + key + half * W) - top) * scale);
      total[half] += weight;
      store_weights(weights + key + half * W, weight);
    }
  }
  return sum(total[0] + total[1]);
}

// Hides what a query does not see of the tiles' keys; by whole registers, as they are read again at once.
inline void hide(float* scores, Range seen, Range own) {
  Ints lanes;
  for (int lane = 0; lane < W; ++lane) lanes[lane] = lane;
  const auto hide_in = [&](int64_t key) {
    const Ints keys = lanes + static_cast<int32_t>(key);
    const Ints sees = (keys >= static_cast<int32_t>(own.first)) & (keys < static_cast<int32_t>(own.last));
    store(scores + key, sees ? load<Floats>(scores + key) : Floats{} - __builtin_inff());
  };
  for (int64_t key = seen.first; key < own.first; key += W) hide_in(key);
  for (int64_t key = own.last / W * W; key < seen.last; key += W) hide_in(key);
}

// Which keys of its sequence a query sees.
inline Range range(const Attention& call, int64_t query, int64_t length) {
  return {larger(0, query - call.left), smaller(length, query + call.right + 1)};
}

template <class Tiles>
inline void attend_sequence(const Attention& call, int64_t row, int64_t kv_head, int64_t begin, int64_t length) {
  Tiles tiles(call, length);
  tiles.pack((row * call.tokens + begin) * call.kv_heads + kv_head);
  const int64_t shared = call.heads / call.kv_heads;
  const float scale = call.scale * 0x1.715476p0f;  // log2(e): exp(x) = 2^(x · log2(e))
  for (int64_t head = kv_head * shared; head < (kv_head + 1) * shared; ++head) {
    for (int64_t start = 0; start < length; start += Tiles::kQueries) {
      const int64_t count = smaller(Tiles::kQueries, length - start);
      const Range seen = {range(call, start, length).first / Tiles::kKeys * Tiles::kKeys,
                          round_up(range(call, start + count - 1, length).last, Tiles::kKeys)};
      const int64_t at = ((row * call.tokens + begin + start) * call.heads + head) * call.width;
      tiles.scores(at, count, seen);
      float sums[Tiles::kQueries];
      for (int64_t i = 0; i < count; ++i) {
        const Range own = range(call, start + i, length);
        float* scores = tiles.scores_of(i);
        hide(scores, seen, own);
        sums[i] = softmax<Tiles::kTerms>(scores, tiles.weights_of(i), seen, scale);
      }
      tiles.mix(count, seen);
      for (int64_t i = 0; i < count; ++i) {
        const float* mixed = tiles.mixed_of(i);
        const float share = 1 / sums[i];
        for (int64_t feature = 0; feature < call.width; feature += W)
          store_floats(call.out, call.out_bfloat16, at + i * call.heads * call.width + feature,
                       load<Floats>(mixed + feature) * share, call.width - feature);
      }
    }
  }
}

template <class Tiles>
inline void attend(const Attention& call, int64_t row, int64_t kv_head) {
  const int32_t* segments = call.segments + row * call.tokens;
  const int64_t stride = call.heads * call.width, own = stride / call.kv_heads;
  const int64_t size = call.out_bfloat16 ? sizeof(BFloat16) : sizeof(float);
  for (int64_t begin = 0, end; begin < call.tokens; begin = end) {
    for (end = begin + 1; end < call.tokens && segments[end] == segments[begin]; ++end) {
    }
    if (segments[begin] > 0) {
      attend_sequence<Tiles>(call, row, kv_head, begin, end - begin);
    } else {
      for (int64_t token = begin; token < end; ++token)
        memset(static_cast<char*>(call.out) + ((row * call.tokens + token) * stride + kv_head * own) * size, 0,
               own * size);
    }
  }
}

}  // namespace
