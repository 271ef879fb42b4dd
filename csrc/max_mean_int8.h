// int8 products of quantized rows: approximate scores of a block of frames with a tile of tokens.
//
//   scores[l,t] = sum_c (frame[t,c] + kFrameZeroPoint) token[l,c] + correction[l] = sum_c frame[t,c] token[l,c]
#pragma once

#include "max_mean_quantize.h"

namespace atk {
namespace {

// sum += frame (unsigned) * token (signed), summed over groups of kDotChannels bytes. In assembly, because GCC 12
// copies the accumulators of the intrinsic back and forth, which halves the speed of a loop over many of them.
inline void add_products(__m512i& sum, __m512i frame, __m512i token) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(frame), "v"(token));
}

// Writes the int32 scores of V vectors of frames [groups][kBlock][kDotChannels] with K tokens
// [groups][K][kDotChannels], and updates the best score of each frame.
template <int V, int K>
void approximate_tile(const uint8_t* frames, const uint8_t* tokens, const int32_t* correction, int64_t groups,
                      int32_t* scores, __m512i* best) {
  __m512i score[K][V];
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) score[k][v] = _mm512_set1_epi32(correction[k]);
  for (int64_t g = 0; g < groups; ++g, frames += kBlock * kDotChannels, tokens += K * kDotChannels) {
    __m512i frame[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) frame[v] = _mm512_loadu_si512(frames + v * kLanes * kDotChannels);
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) {
      int32_t token;
      std::memcpy(&token, tokens + k * kDotChannels, sizeof token);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) add_products(score[k][v], frame[v], _mm512_set1_epi32(token));
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      _mm512_storeu_si512(scores + k * kBlock + v * kLanes, score[k][v]);
      best[v] = _mm512_max_epi32(best[v], score[k][v]);
    }
}

// approximate_tile for every tile size: ApproximateTiles<V, Tokens>::tile[K - 1].
using ApproximateTile = void (*)(const uint8_t*, const uint8_t*, const int32_t*, int64_t, int32_t*, __m512i*);

template <int V, class Tokens>
struct ApproximateTiles;
template <int V, int... K>
struct ApproximateTiles<V, std::integer_sequence<int, K...>> {
  static constexpr ApproximateTile tile[] = {approximate_tile<V, K + 1>...};
};

}  // namespace
}  // namespace atk
