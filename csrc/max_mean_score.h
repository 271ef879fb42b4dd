// Forward of the max-mean similarity: lanes are frames, tokens are broadcast, and a register tile of
// kTileVectors x kTileTokens scores is folded into the running maximum (and its index) as soon as it is complete.
// Each score is one chain of fused multiply-adds over the channels, whatever the tile: results do not depend on it.
#pragma once

#include <utility>

#include "max_mean_pack.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace atk {
namespace {

// Multiply-adds of words: `frames` holds a word of kLanes frames, `token` a word of one token.
struct Float32Words {
  static Vec multiply_add(Vec sum, Vec frames, float token) { return sum + frames * token; }
};

// In float32, channel by channel.
struct Bfloat16Words {
  static Vec multiply_add(Vec sum, Vec frames, float token) {
    const IntVec words = reinterpret_cast<IntVec>(frames);
    const uint32_t bits = float_bits(token);
    sum += reinterpret_cast<Vec>(words << 16) * bits_float(bits << 16);
    return sum + reinterpret_cast<Vec>(words & static_cast<int32_t>(0xffff0000)) * bits_float(bits & 0xffff0000);
  }
};

#if defined(__AVX512BF16__)
// Two channels at once; takes what is below the smallest normal float for zero.
struct Bfloat16Dot {
  static Vec multiply_add(Vec sum, Vec frames, float token) {
    const IntVec tokens = IntVec{} + static_cast<int32_t>(float_bits(token));
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(frames), reinterpret_cast<__m512bh>(tokens));
  }
};
#endif

struct Best {
  Vec score[kTileVectors];
  IntVec token[kTileVectors];
};

// Scores V vectors of frames [words][V * kLanes] against K tokens [words][K], which the caption counts from `first`;
// `careful` says that scores may be NaN.
template <class Words, int V, int K>
void score_tile(const float* frames, const float* tokens, int64_t words, int32_t first, bool careful, Best* winners) {
  Vec score[K][V] = {};
  for (int64_t c = 0; c < words; ++c, frames += V * kLanes, tokens += K) {
    Vec frame[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) frame[v] = load(frames + v * kLanes);
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) score[k][v] = Words::multiply_add(score[k][v], frame[v], tokens[k]);
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
        token = wins ? IntVec{} + (first + k) : token;
      }
    } else {
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) {
        const IntVec wins = score[k][v] > best;
        best = wins ? score[k][v] : best;
        token = wins ? IntVec{} + (first + k) : token;
      }
    }
    winners->score[v] = best;
    winners->token[v] = token;
  }
}

using ScoreTile = void (*)(const float*, const float*, int64_t, int32_t, bool, Best*);

template <class Words, int V, class Tokens>
struct TilesOfWidth;
template <class Words, int V, int... K>
struct TilesOfWidth<Words, V, std::integer_sequence<int, K...>> {
  static constexpr ScoreTile tile[] = {score_tile<Words, V, K + 1>...};
};
template <class Words, class Widths>
struct AllTiles;
template <class Words, int... V>
struct AllTiles<Words, std::integer_sequence<int, V...>> {
  static constexpr const ScoreTile* width[] = {
      TilesOfWidth<Words, V + 1, std::make_integer_sequence<int, kTileTokens>>::tile...};
};
template <class Words>
using Tiles = AllTiles<Words, std::make_integer_sequence<int, kTileVectors>>;

template <class Index>
inline void write_index(const Best& best, int64_t count, Index* index) {
  int32_t token[kBlock];
  std::memcpy(token, best.token, sizeof token);
  if (count == kBlock)
    for (int64_t r = 0; r < kBlock; ++r) index[r] = static_cast<Index>(token[r]);
  else
    for (int64_t r = 0; r < count; ++r) index[r] = static_cast<Index>(token[r]);
}

// Sum over `count` packed frames of the best score among the caption's tokens.
template <class Words, class Index>
float score_chunk(const float* frames, int64_t count, const float* tokens, int64_t token_count, int64_t words,
                  bool careful, Index* index) {
  IntVec lane;
  for (int k = 0; k < kLanes; ++k) lane[k] = k;
  Vec sum[kTileVectors] = {};
  const TokenTiles tiles = token_tiles(token_count);
  for (int64_t r = 0; r < count; r += kBlock) {
    const int32_t valid = static_cast<int32_t>(min(kBlock, count - r));
    const int vectors = (valid + kLanes - 1) / kLanes;
    Best best;
    for (int v = 0; v < vectors; ++v) {
      best.score[v] = Vec{} - __builtin_inff();
      best.token[v] = IntVec{};
    }
    for (int64_t l = 0, tile = 0; l < token_count; ++tile) {
      const int64_t n = tile_size(tiles, tile);
      Tiles<Words>::width[vectors - 1][n - 1](frames + r * words, tokens + l * words, words, static_cast<int32_t>(l),
                                              careful, &best);
      l += n;
    }
    for (int v = 0; v < vectors; ++v) sum[v] += lane + v * kLanes < valid ? best.score[v] : Vec{};
    if (index) write_index(best, valid, index + r);
  }
  for (int v = 1; v < kTileVectors; ++v) sum[0] += sum[v];
  float total = 0;
  for (int k = 0; k < kLanes; ++k) total += sum[0][k];
  return total;
}

// What the magnitudes of a caption and of a chunk of frames allow.
struct Bounds {
  bool finite;    // no score is infinite or NaN: |score| <= d * max|a| * max|t|
  bool ordinary;  // nor does it matter to any score that values below the smallest normal float are taken for zero
};

inline Bounds bounds(const Magnitudes& frames, const Magnitudes& tokens, int64_t d) {
  constexpr float kTiny = 0x1p-45f;
  const bool finite = static_cast<double>(frames.largest) * tokens.largest * d < FLT_MAX;
  return {finite, finite && frames.smallest_row >= kTiny && tokens.smallest_row >= kTiny};
}

// score_chunk in the arithmetic that fits the type T of the rows.
template <class T, class Index>
float score_caption(const float* frames, int64_t count, const float* tokens, int64_t token_count, int64_t words,
                    const Bounds& bounds, Index* index) {
  if constexpr (kPerWord<T> == 1) {
    return score_chunk<Float32Words>(frames, count, tokens, token_count, words, !bounds.finite, index);
  } else {
#if defined(__AVX512BF16__)
    if (bounds.ordinary)
      return score_chunk<Bfloat16Dot>(frames, count, tokens, token_count, words, false, index);
#endif
    return score_chunk<Bfloat16Words>(frames, count, tokens, token_count, words, !bounds.finite, index);
  }
}

// The frames of a task's chunk, to be packed in whole register tiles and scored without screening.
template <class T, class Index>
struct FrameChunk {
  const ScoreTask& task;
  const MaxMean& op = *task.op;
  const T* rows = static_cast<const T*>(op.audio.rows);
  const int32_t* row = task.frames.row + task.chunk.begin;
  const int64_t count = task.chunk.end - task.chunk.begin, words = (op.d + kPerWord<T> - 1) / kPerWord<T>;

  void pack(int64_t begin, int64_t end) const {
    for (int64_t b = begin; b < end; b += kBlock) {
      const int64_t n = min(kBlock, end - b), lanes = (n + kLanes - 1) / kLanes * kLanes;
      pack_rows(rows, row + b, n, op.d, lanes, task.packed + b * words);
    }
  }

  // Sum over the packed frames begin .. before end of the best score in caption j; begin is a multiple of kBlock.
  float score(int64_t j, int64_t begin, int64_t end, const Magnitudes& frames) const {
    const PackedCaptions& captions = task.captions;
    const int64_t* first = captions.tokens.first;
    Index* index = winners_of<Index>(op, task.winners, j, task.chunk.begin + begin);
    return score_caption<T>(task.packed + begin * words, end - begin,
                            captions.packed + (first[j] - first[captions.begin]) * words, first[j + 1] - first[j],
                            words, bounds(frames, captions.magnitudes[j - captions.begin], op.d), index);
  }
};

template <class T, class Index>
struct DirectChunk {
  FrameChunk<T, Index> frames;
  Magnitudes frame_magnitudes;

  explicit DirectChunk(const ScoreTask& task)
      : frames{task}, frame_magnitudes(magnitudes(frames.rows, frames.row, frames.count, frames.op.d)) {
    frames.pack(0, frames.count);
  }

  float score(int64_t j) { return frames.score(j, 0, frames.count, frame_magnitudes); }
};

template <class Chunk>
void score_clip(const ScoreTask& task) {
  const MaxMean& op = *task.op;
  const int64_t* first_token = task.captions.tokens.first;
  Chunk chunk(task);
  for (int64_t j = task.caption_begin; j < task.caption_end; ++j) {
    const int64_t pair = op.pairs ? j : task.chunk.clip * op.text.count + j;
    const bool wanted = first_token[j] < first_token[j + 1] && !(task.grad && task.grad[pair] == 0);
    task.sum[j - task.captions.begin] = wanted ? chunk.score(j) : 0;
  }
}

void score(const ScoreTask& task) {
  with_dtype(task.op->dtype, [&](auto type) {
    with_index(task.winners.bytes, [&](auto index) {
      score_clip<DirectChunk<typename decltype(type)::type, typename decltype(index)::type>>(task);
    });
  });
}

}  // namespace
}  // namespace atk
