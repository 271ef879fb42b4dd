// int8 products of quantized rows: approximate scores of a block of frames with a tile of tokens.
//
//   scores[l,t] = sum_c (frame[t,c] + kFrameZeroPoint) token[l,c] + correction[l] = sum_c frame[t,c] token[l,c]
#pragma once

#include "max_mean_quantize.h"

namespace atk {
namespace {

// Writes the int32 scores of V vectors of frames [groups][kBlock][kDotChannels] with K tokens
// [groups][K][kDotChannels], and updates the best score of each frame.
template <int V, int K>
void approximate_tile(const uint8_t* frames, const uint8_t* tokens, const int32_t* correction, int64_t groups,
                      int32_t* scores, IntVec* best) {
  IntVec score[K][V];
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) score[k][v] = IntVec{} + correction[k];
  for (int64_t g = 0; g < groups; ++g, frames += kBlock * kDotChannels, tokens += K * kDotChannels) {
    IntVec frame[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) std::memcpy(&frame[v], frames + v * kLanes * kDotChannels, sizeof frame[v]);
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) {
      int32_t token;
      std::memcpy(&token, tokens + k * kDotChannels, sizeof token);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) add_products(score[k][v], frame[v], IntVec{} + token);
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      std::memcpy(scores + k * kBlock + v * kLanes, &score[k][v], sizeof score[k][v]);
      best[v] = maximum(best[v], score[k][v]);
    }
}

struct ApproximateTile {
  using Function = void (*)(const uint8_t*, const uint8_t*, const int32_t*, int64_t, int32_t*, IntVec*);
  template <int V, int K>
  static constexpr Function run = approximate_tile<V, K>;
};

}  // namespace
}  // namespace atk
