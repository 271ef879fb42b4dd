// Forward of the max-mean similarity: lanes are frames, tokens are broadcast, and a register tile of
// kTileVectors x kTileTokens scores is folded into the running maximum (and its index) as soon as it is complete.
// Each score is one chain of fused multiply-adds over the channels, whatever the tile: results do not depend on it.
#pragma once

#include <cfloat>
#include <utility>

#include "simd.h"

namespace atk {
namespace {

// A caption's tokens are cut into the fewest tiles of at most kTileTokens, as equal as possible.
struct TokenTiles {
  int64_t base, larger;  // `larger` tiles of base + 1 tokens come first
};

inline TokenTiles token_tiles(int64_t tokens) {
  const int64_t tiles = (tokens + kTileTokens - 1) / kTileTokens;
  return {tokens / tiles, tokens % tiles};
}

inline int64_t tile_size(const TokenTiles& tiles, int64_t tile) { return tiles.base + (tile < tiles.larger); }

// Packs rows[position[r]], r < count, as [d][lanes]. Returns the largest magnitude so far as bits: integers order
// finite < inf < NaN.
template <class T>
uint32_t pack_rows(const T* rows, const int32_t* position, int64_t count, int64_t d, int64_t lanes, float* packed,
                   uint32_t magnitude) {
  constexpr int64_t kStep = 64;  // channels at a time, so that the strided writes stay in the first-level cache
  float row[kStep];
  for (int64_t c = 0; c < d; c += kStep) {
    const int64_t n = min(kStep, d - c);
    for (int64_t r = 0; r < count; ++r) {
      const T* source = rows + position[r] * d + c;
      for (int64_t k = 0; k < n; ++k) row[k] = widen(source[k]);
      for (int64_t k = 0; k < n; ++k) {
        const uint32_t bits = float_bits(row[k]) & 0x7fffffff;
        magnitude = bits > magnitude ? bits : magnitude;
      }
      for (int64_t k = 0; k < n; ++k) packed[(c + k) * lanes + r] = row[k];
    }
    for (int64_t k = 0; k < n; ++k)
      for (int64_t r = count; r < lanes; ++r) packed[(c + k) * lanes + r] = 0;
  }
  return magnitude;
}

float pack_caption(const MaxMean& op, const ValidRows& tokens, int64_t caption, float* packed) {
  const int32_t* position = tokens.position + tokens.first[caption];
  const int64_t count = tokens.first[caption + 1] - tokens.first[caption];
  uint32_t magnitude = 0;
  if (count == 0) return 0;
  with_dtype(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* rows = static_cast<const T*>(op.text) + caption * op.l_t * op.d;
    const TokenTiles tiles = token_tiles(count);
    for (int64_t l = 0, tile = 0; l < count; ++tile) {
      const int64_t n = tile_size(tiles, tile);
      magnitude = pack_rows(rows, position + l, n, op.d, n, packed + l * op.d, magnitude);
      l += n;
    }
  });
  return bits_float(magnitude);
}

struct Winners {
  Vec score[kTileVectors];
  IntVec token[kTileVectors];
};

// Scores V vectors of frames [d][V * kLanes] against K tokens [d][K]. `position` are the tokens' places in the padded
// caption; `careful` says that scores may be NaN.
template <int V, int K>
void score_tile(const float* frames, const float* tokens, int64_t d, const int32_t* position, bool careful,
                Winners* winners) {
  Vec score[K][V] = {};
  for (int64_t c = 0; c < d; ++c, frames += V * kLanes, tokens += K) {
    Vec frame[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) frame[v] = load(frames + v * kLanes);
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) score[k][v] += frame[v] * tokens[k];
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    Vec best = winners->score[v];
    IntVec token = winners->token[v];
    if (__builtin_expect(careful, 0)) {
      for (int k = 0; k < K; ++k) {  // the first NaN beats every number
        const Vec s = score[k][v];
        const IntVec wins = (s > best) | ((s != s) & (best == best));
        best = wins ? s : best;
        token = wins ? IntVec{} + position[k] : token;
      }
    } else {
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) {
        const IntVec wins = score[k][v] > best;
        best = wins ? score[k][v] : best;
        token = wins ? IntVec{} + position[k] : token;
      }
    }
    winners->score[v] = best;
    winners->token[v] = token;
  }
}

using ScoreTile = void (*)(const float*, const float*, int64_t, const int32_t*, bool, Winners*);

template <int V, class Tokens>
struct TilesOfWidth;
template <int V, int... K>
struct TilesOfWidth<V, std::integer_sequence<int, K...>> {
  static constexpr ScoreTile tile[] = {score_tile<V, K + 1>...};
};
template <class Widths>
struct AllTiles;
template <int... V>
struct AllTiles<std::integer_sequence<int, V...>> {
  static constexpr const ScoreTile* width[] = {
      TilesOfWidth<V + 1, std::make_integer_sequence<int, kTileTokens>>::tile...};
};
using Tiles = AllTiles<std::make_integer_sequence<int, kTileVectors>>;

template <class Index>
inline void write_index(const Winners& winners, const int32_t* position, int64_t count, Index* index) {
  int32_t token[kBlock];
  std::memcpy(token, winners.token, sizeof token);
  for (int64_t r = 0; r < count; ++r) index[position[r]] = static_cast<Index>(token[r]);
}

// Sum over `count` packed frames of the best score among the caption's tokens.
template <class Index>
float score_chunk(const float* frames, int64_t count, const int32_t* frame_position, const float* tokens,
                  int64_t token_count, const int32_t* token_position, int64_t d, bool careful, Index* index) {
  IntVec lane;
  for (int k = 0; k < kLanes; ++k) lane[k] = k;
  Vec sum[kTileVectors] = {};
  const TokenTiles tiles = token_tiles(token_count);
  for (int64_t r = 0; r < count; r += kBlock) {
    const int32_t valid = static_cast<int32_t>(min(kBlock, count - r));
    const int vectors = (valid + kLanes - 1) / kLanes;
    Winners winners;
    for (int v = 0; v < vectors; ++v) {
      winners.score[v] = Vec{} - __builtin_inff();
      winners.token[v] = IntVec{} + token_position[0];
    }
    for (int64_t l = 0, tile = 0; l < token_count; ++tile) {
      const int64_t n = tile_size(tiles, tile);
      Tiles::width[vectors - 1][n - 1](frames + r * d, tokens + l * d, d, token_position + l, careful, &winners);
      l += n;
    }
    for (int v = 0; v < vectors; ++v) sum[v] += lane + v * kLanes < valid ? winners.score[v] : Vec{};
    if (index) write_index(winners, frame_position + r, valid, index);
  }
  for (int v = 1; v < kTileVectors; ++v) sum[0] += sum[v];
  float total = 0;
  for (int k = 0; k < kLanes; ++k) total += sum[0][k];
  return total;
}

template <class T, class Index>
void score_clip(const ScoreTask& task) {
  const MaxMean& op = *task.op;
  const PackedCaptions& captions = task.captions;
  const int32_t* position = task.frames.position + task.frames.first[task.clip];
  const int64_t count = task.frames.first[task.clip + 1] - task.frames.first[task.clip];
  const int64_t* first_token = captions.rows.first;
  float* sim = task.sim + task.clip * op.n_t;
  Index* index = static_cast<Index*>(op.index);
  for (int64_t j = task.caption_begin; j < task.caption_end; ++j) sim[j] = 0;
  for (int64_t r = 0; r < count; r += task.chunk) {
    const int64_t frames = min(task.chunk, count - r);
    const T* rows = static_cast<const T*>(op.audio) + task.clip * op.l_a * op.d;
    uint32_t magnitude = 0;
    for (int64_t b = 0; b < frames; b += kBlock) {
      const int64_t n = min(kBlock, frames - b), lanes = (n + kLanes - 1) / kLanes * kLanes;
      magnitude = pack_rows(rows, position + r + b, n, op.d, lanes, task.packed + b * op.d, magnitude);
    }
    for (int64_t j = task.caption_begin; j < task.caption_end; ++j) {
      const int64_t tokens = first_token[j + 1] - first_token[j];
      if (tokens == 0) continue;
      // |score| <= d * max|a| * max|t|: below the largest float no score is infinite or NaN, and no check is needed.
      const double bound = static_cast<double>(bits_float(magnitude)) * captions.magnitude[j - captions.begin] * op.d;
      sim[j] += score_chunk<Index>(task.packed, frames, position + r,
                                   captions.packed + (first_token[j] - first_token[captions.begin]) * op.d, tokens,
                                   captions.rows.position + first_token[j], op.d, !(bound < FLT_MAX),
                                   index ? index + (task.clip * op.n_t + j) * op.l_a : nullptr);
    }
  }
  for (int64_t j = task.caption_begin; j < task.caption_end && count; ++j) sim[j] /= count;
}

void score(const ScoreTask& task) {
  with_dtype(task.op->dtype, [&](auto type) {
    with_index(task.op->index_bytes, [&](auto index) {
      score_clip<typename decltype(type)::type, typename decltype(index)::type>(task);
    });
  });
}

}  // namespace
}  // namespace atk
