// Forward of the max-mean similarity:
//
//   sums[i,j] = sum_{t in chunk} max_l <audio[i,t], text[j,l]>
//
// Lanes are frames, of one clip or of several, and tokens are broadcast. A register tile of kTileVectors x kTileTokens
// score vectors is folded into the running maximum and its index as soon as it is complete. Each score is one chain of
// fused multiply-adds over the channels, so results do not depend on the tiling.
#pragma once

#include <utility>

#include "max_mean_pack.h"

#if ATK_BFLOAT16_DOT && defined(__x86_64__)
#include <immintrin.h>
#elif ATK_BFLOAT16_DOT
#include <arm_neon.h>
#endif

namespace atk {
namespace {

// How to multiply words: `frames` holds one word of kLanes frames, `token` one word of a token.
struct Float32Words {
  static Vec multiply_add(Vec sum, Vec frames, float token) { return sum + frames * token; }
};

// Two bfloat16 channels, multiplied one after the other in float32.
struct Bfloat16Words {
  static Vec multiply_add(Vec sum, Vec frames, float token) {
    const IntVec words = reinterpret_cast<IntVec>(frames);
    const uint32_t bits = float_bits(token);
    sum += reinterpret_cast<Vec>(words << 16) * bits_float(bits << 16);
    return sum + reinterpret_cast<Vec>(words & static_cast<int32_t>(kHighHalf)) * bits_float(bits & kHighHalf);
  }
};

#if ATK_BFLOAT16_DOT
// Two bfloat16 channels, multiplied in one instruction, which flushes subnormals to zero.
struct Bfloat16Dot {
  static Vec multiply_add(Vec sum, Vec frames, float token) {
    const IntVec tokens = IntVec{} + static_cast<int32_t>(float_bits(token));
#if defined(__x86_64__)
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(frames), reinterpret_cast<__m512bh>(tokens));
#else
    return vbfdotq_f32(sum, reinterpret_cast<bfloat16x8_t>(frames), reinterpret_cast<bfloat16x8_t>(tokens));
#endif
  }
};
#endif

struct Best {
  Vec score[kTileVectors];
  IntVec token[kTileVectors];
};

// Folds the scores of V vectors of frames [words][V * kLanes] with K tokens [words][K] into `best`. The index of the
// first token within its caption is `first_token`.
template <class Words, int V, int K>
void score_tile(const float* frames, const float* tokens, int64_t words, int32_t first_token, bool may_be_nan,
                Best* best) {
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
    Vec best_score = best->score[v];
    IntVec best_token = best->token[v];
    if (__builtin_expect(may_be_nan, 0)) {
      for (int k = 0; k < K; ++k) {  // the first NaN wins over every other score
        const Vec s = score[k][v];
        const IntVec wins = (s > best_score) | ((s != s) & (best_score == best_score));
        best_score = wins ? s : best_score;
        best_token = wins ? IntVec{} + (first_token + k) : best_token;
      }
    } else {
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) {
        const IntVec wins = score[k][v] > best_score;
        best_score = wins ? score[k][v] : best_score;
        best_token = wins ? IntVec{} + (first_token + k) : best_token;
      }
    }
    best->score[v] = best_score;
    best->token[v] = best_token;
  }
}

template <class Words>
struct DirectTile {
  using Function = void (*)(const float*, const float*, int64_t, int32_t, bool, Best*);
  template <int V, int K>
  static constexpr Function run = score_tile<Words, V, K>;
};

// Tile::run<V, K> for every tile size: Tiles<Tile>::width[V - 1][K - 1].
template <class Tile, int V, class Tokens>
struct TilesOfWidth;
template <class Tile, int V, int... K>
struct TilesOfWidth<Tile, V, std::integer_sequence<int, K...>> {
  static constexpr typename Tile::Function tile[] = {Tile::template run<V, K + 1>...};
};
template <class Tile, class Widths>
struct AllTiles;
template <class Tile, int... V>
struct AllTiles<Tile, std::integer_sequence<int, V...>> {
  static constexpr const typename Tile::Function* width[] = {
      TilesOfWidth<Tile, V + 1, std::make_integer_sequence<int, kTileTokens>>::tile...};
};
template <class Tile>
using Tiles = AllTiles<Tile, std::make_integer_sequence<int, kTileVectors>>;

template <class Index>
inline void write_index(const Best& best, int64_t count, Index* index) {
  int32_t token[kBlock];
  std::memcpy(token, best.token, sizeof token);
  if (count == kBlock)
    for (int64_t r = 0; r < kBlock; ++r) index[r] = static_cast<Index>(token[r]);
  else
    for (int64_t r = 0; r < count; ++r) index[r] = static_cast<Index>(token[r]);
}

// Writes the best score of each of `frame_count` packed frames among the caption's tokens, and the winner indices unless
// `index` is null.
template <class Words, class Index>
void score_frames(const float* frames, int64_t frame_count, const float* tokens, int64_t token_count, int64_t words,
                  bool may_be_nan, float* scores, Index* index) {
  const TokenTiles tiles = token_tiles(token_count);
  for (int64_t r = 0; r < frame_count; r += kBlock) {
    const int32_t valid = static_cast<int32_t>(min(kBlock, frame_count - r));
    const int vectors = (valid + kLanes - 1) / kLanes;
    Best best;
    for (int v = 0; v < vectors; ++v) {
      best.score[v] = Vec{} - __builtin_inff();
      best.token[v] = IntVec{};
    }
    for (int64_t l = 0, tile = 0; l < token_count; ++tile) {
      const int64_t tile_tokens = tile_size(tiles, tile);
      Tiles<DirectTile<Words>>::width[vectors - 1][tile_tokens - 1](frames + r * words, tokens + l * words, words,
                                                                    static_cast<int32_t>(l), may_be_nan, &best);
      l += tile_tokens;
    }
    std::memcpy(scores + r, best.score, valid * sizeof(float));
    if (index) write_index(best, valid, index + r);
  }
}

// Sum of a score per frame; reads whole register tiles.
inline float sum_scores(const float* scores, int64_t frame_count) {
  IntVec lane;
  for (int k = 0; k < kLanes; ++k) lane[k] = k;
  Vec sum[kTileVectors] = {};
  for (int64_t r = 0; r < frame_count; r += kBlock) {
    const int32_t valid = static_cast<int32_t>(min(kBlock, frame_count - r));
    for (int v = 0; v < kTileVectors; ++v)
      sum[v] += lane + v * kLanes < valid ? load(scores + r + v * kLanes) : Vec{};
  }
  for (int v = 1; v < kTileVectors; ++v) sum[0] += sum[v];
  return sum_of_lanes(sum[0]);
}

// What is known about the scores of a chunk of frames with a caption, from the magnitudes of both.
struct ScoreBounds {
  bool finite;      // no score is infinite or NaN, since |score| <= D * max|a| * max|t|
  bool flush_safe;  // finite, and flushing subnormals to zero is negligible in every score
};

constexpr float kFlushSafe = 0x1p-45f;  // smallest maximum of a row
constexpr float kOrdinary = 0x1p45f;    // largest component

// Whether the bounds with any tokens are the same for all frames like these.
inline bool is_ordinary(const Magnitudes& frames) {
  return frames.largest <= kOrdinary && frames.smallest_row_max >= kFlushSafe;
}

inline ScoreBounds score_bounds(const Magnitudes& frames, const Magnitudes& tokens, int64_t D) {
  const double largest = frames.largest <= kOrdinary ? kOrdinary : frames.largest;
  const bool finite = largest * tokens.largest * D < FLT_MAX;
  return {finite, finite && frames.smallest_row_max >= kFlushSafe && tokens.smallest_row_max >= kFlushSafe};
}

// score_frames with the arithmetic for rows of type T.
template <class T, class Index>
void score_caption(const float* frames, int64_t frame_count, const float* tokens, int64_t token_count, int64_t words,
                   const ScoreBounds& bounds, float* scores, Index* index) {
  if constexpr (kPerWord<T> == 1) {
    score_frames<Float32Words>(frames, frame_count, tokens, token_count, words, !bounds.finite, scores, index);
  } else {
#if ATK_BFLOAT16_DOT
    if (bounds.flush_safe)
      return score_frames<Bfloat16Dot>(frames, frame_count, tokens, token_count, words, false, scores, index);
#endif
    score_frames<Bfloat16Words>(frames, frame_count, tokens, token_count, words, !bounds.finite, scores, index);
  }
}

// The frames of a task's chunk, packed in whole register tiles and scored without screening.
template <class T, class Index>
struct FrameChunk {
  const ScoreTask& task;
  const MaxMean& op = *task.op;
  const T* rows = static_cast<const T*>(op.audio.rows);
  const int32_t* source_row = task.frames.source_row + task.chunk.begin;
  const int64_t count = task.chunk.end - task.chunk.begin;
  const int64_t words = words_per_row<T>(op.D);

  // Packs the frames [begin, end); begin is a multiple of kBlock.
  void pack(int64_t begin, int64_t end) const {
    for (int64_t b = begin; b < end; b += kBlock) {
      const int64_t block_frames = min(kBlock, end - b);
      const int64_t lanes = (block_frames + kLanes - 1) / kLanes * kLanes;
      pack_rows(rows, source_row + b, block_frames, op.D, lanes, task.packed_frames + b * words);
    }
  }

  // Writes the best score in caption j of each of the packed frames [begin, end); begin is a multiple of kBlock.
  void score(int64_t j, int64_t begin, int64_t end, const Magnitudes& frame_magnitudes) const {
    const int64_t* offset = task.captions.tokens.offset;
    const ScoreBounds bounds = score_bounds(frame_magnitudes, task.captions.magnitudes[j - task.captions.begin], op.D);
    Index* index = winner_indices<Index>(op, task.winners, j, task.chunk.begin + begin);
    const float* tokens = task.captions.packed + (offset[j] - offset[task.captions.begin]) * words;
    score_caption<T>(task.packed_frames + begin * words, end - begin, tokens, offset[j + 1] - offset[j], words, bounds,
                     task.best_scores + begin, index);
  }
};

template <class T, class Index>
struct DirectChunk {
  FrameChunk<T, Index> frames;
  const Magnitudes frame_magnitudes;

  explicit DirectChunk(const ScoreTask& task)
      : frames{task}, frame_magnitudes(magnitudes(frames.rows, frames.source_row, frames.count, frames.op.D)) {}

  void pack() { frames.pack(0, frames.count); }
  void score(int64_t j) { frames.score(j, 0, frames.count, frame_magnitudes); }
};

// Whether a caption has tokens, and one of its pairs with the chunk's clips a gradient.
inline bool is_wanted(const ScoreTask& task, int64_t j) {
  const int64_t* token_offset = task.captions.tokens.offset;
  if (token_offset[j] == token_offset[j + 1]) return false;
  if (!task.grad) return true;
  if (task.op->pairs) return task.grad[j] != 0;
  for (int64_t i = task.chunk.clip; i < task.chunk.clip + task.chunk.clips; ++i)
    if (task.grad[i * task.op->text.num_sequences + j] != 0) return true;
  return false;
}

// Writes the task's sums; 0 for captions that are not wanted.
template <class Chunk>
void score_captions(const ScoreTask& task, Chunk& chunk) {
  const int64_t captions = task.captions.end - task.captions.begin;
  const int64_t* offset = task.frames.offset + task.chunk.clip;
  chunk.pack();
  for (int64_t j = task.caption_begin; j < task.caption_end; ++j) {
    const bool wanted = is_wanted(task, j);
    if (wanted) chunk.score(j);
    for (int64_t i = 0; i < task.chunk.clips; ++i) {
      const int64_t begin = max(offset[i], task.chunk.begin), end = min(offset[i + 1], task.chunk.end);
      const float* scores = task.best_scores + begin - task.chunk.begin;
      task.sums[i * captions + j - task.captions.begin] = wanted ? sum_scores(scores, end - begin) : 0;
    }
  }
}

// Scores clips one by one if their magnitudes could choose another arithmetic for the others in the chunk.
template <class T, class Index>
void score_clips(const ScoreTask& task) {
  DirectChunk<T, Index> chunk(task);
  if (kPerWord<T> == 1 || task.chunk.clips == 1 || is_ordinary(chunk.frame_magnitudes))
    return score_captions(task, chunk);
  const int64_t* offset = task.frames.offset + task.chunk.clip;
  for (int64_t i = 0; i < task.chunk.clips; ++i) {
    ScoreTask clip = task;
    clip.chunk = {task.chunk.clip + i, 1, max(offset[i], task.chunk.begin), min(offset[i + 1], task.chunk.end)};
    clip.sums += i * (task.captions.end - task.captions.begin);
    DirectChunk<T, Index> alone(clip);
    score_captions(clip, alone);
  }
}

void score(const ScoreTask& task) {
  with_dtype(task.op->dtype, [&](auto type) {
    with_index(task.winners.index_bytes, [&](auto index) {
      score_clips<typename decltype(type)::type, typename decltype(index)::type>(task);
    });
  });
}

}  // namespace
}  // namespace atk
