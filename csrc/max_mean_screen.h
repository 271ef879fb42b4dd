// Forward of the max-mean similarity through int8: int8 products rule out most tokens of each frame, and only the
// remaining candidates are scored in float32. The winners are exactly those of float32 scores.
//
// With quanta s and p, a frame is a = s (x + dx) and a centered token t = p (y + dy), with x and y int8. Then
//
//   | <a, t> / (s p) - <x, y> | <= |dx| |t| / p + |x| |dy| =: e
//
// so two tokens rank like their int32 scores unless these differ by 2 e or less. All candidates of a frame are scored
// with the same order of operations, so equal tokens tie. e includes the rounding error of a float32 score, so the
// winner is the first maximum of all float32 scores, not only of the candidates.
#pragma once

#include <climits>

#include "max_mean_int8.h"

namespace atk {
namespace {

// Below these sizes, scoring directly is faster.
constexpr int64_t kMinScreenTokens = 8;
constexpr int64_t kMinScreenProducts = 1024;  // tokens * D, per frame and caption
constexpr int64_t kMinScreenFrames = 1024;    // valid frames: fewer do not repay quantizing the captions
constexpr int64_t kMinScreenCaptions = 8;     // fewer do not repay quantizing the frames

inline bool worth_screening(int64_t tokens, int64_t D) {
  return tokens >= kMinScreenTokens && tokens * D >= kMinScreenProducts;
}

// A block of frames of one clip, with one caption.
struct ScreenBlock {
  const ScreenScratch& scratch;
  const ScreenedCaption& caption;
  int64_t D;
  int64_t first, frames;  // frames [first, first + frames) of the chunk
  int64_t tokens;
};

// Writes the int32 scores and, to `threshold`, the lowest int32 score of a candidate for each frame.
inline void approximate(const ScreenBlock& block, __m512i threshold[kTileVectors]) {
  using Tokens = std::make_integer_sequence<int, kTileTokens>;
  const int64_t groups = dot_groups(block.D);
  const bool two_vectors = block.frames > kLanes;
  const ApproximateTile* tile = two_vectors ? ApproximateTiles<2, Tokens>::tile : ApproximateTiles<1, Tokens>::tile;
  const uint8_t* frames = block.scratch.quantized + block.first * groups * kDotChannels;
  __m512i best[kTileVectors] = {_mm512_set1_epi32(INT_MIN / 2), _mm512_set1_epi32(INT_MIN / 2)};
  const TokenTiles tiles = token_tiles(block.tokens);
  for (int64_t l = 0, t = 0; l < block.tokens; ++t) {
    const int64_t tile_tokens = tile_size(tiles, t);
    tile[tile_tokens - 1](frames, block.caption.quantized + l * groups * kDotChannels, block.caption.correction + l,
                          groups, block.scratch.scores + l * kBlock, best);
    l += tile_tokens;
  }
  const CaptionBounds& bounds = *block.caption.bounds;
  const __m512 largest_margin = _mm512_set1_ps(0x1p30f);
  for (int v = 0; v < kTileVectors; ++v) {
    const __m512 residual = _mm512_loadu_ps(block.scratch.residual + block.first + v * kLanes);
    const __m512 norm = _mm512_loadu_ps(block.scratch.norm + block.first + v * kLanes);
    __m512 margin = _mm512_mul_ps(norm, _mm512_set1_ps(kNormSlack * bounds.error));
    margin = _mm512_fmadd_ps(residual, _mm512_set1_ps(kNormSlack * bounds.diameter), margin);
    margin = _mm512_min_ps(margin, largest_margin);  // also replaces a NaN from 0 * infinity
    threshold[v] =
        _mm512_sub_epi32(best[v], _mm512_cvt_roundps_epi32(margin, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC));
  }
}

// Lists the candidates, token by token, and returns their count.
inline int64_t select(const ScreenBlock& block, const __m512i threshold[kTileVectors]) {
  const uint32_t valid = block.frames >= kBlock ? ~0u : (1u << block.frames) - 1;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  uint32_t* out = block.scratch.candidate;
  for (int64_t l = 0; l < block.tokens; ++l)
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) {
      const __m512i score = _mm512_loadu_si512(block.scratch.scores + l * kBlock + v * kLanes);
      const __mmask16 selected =
          _mm512_mask_cmpge_epi32_mask(static_cast<__mmask16>(valid >> v * kLanes), score, threshold[v]);
      const __m512i code = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int32_t>(l * kBlock + v * kLanes)));
      _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(selected, code));
      out += __builtin_popcount(selected);
    }
  return out - block.scratch.candidate;
}

inline int64_t find_candidates(const ScreenBlock& block) {
  __m512i threshold[kTileVectors];
  approximate(block, threshold);
  return select(block, threshold);
}

// The sums of four vectors.
inline __m128 sum_lanes(const __m512 (&x)[4]) {
  const __m512 even = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const __m512 odd = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  const __m512 quarter = _mm512_add_ps(_mm512_shuffle_ps(even, odd, 0x44), _mm512_shuffle_ps(even, odd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(quarter), _mm512_extractf32x8_ps(quarter, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// Maps the bits of floats to integers of the same order. The mapping is its own inverse.
inline __m128i ordered(__m128i bits) { return _mm_xor_si128(bits, _mm_srli_epi32(_mm_srai_epi32(bits, 31), 1)); }

// Scores the candidates in float32. A key holds the ordered score in its high half and the complement of the candidate
// in its low half, so the largest key is that of the best score and, among equal scores, of the first token.
inline void rescore(const ScreenBlock& block, int64_t count) {
  const int64_t stride = padded_channels(block.D);
  const float* frames = block.scratch.rows + block.first * stride;
  uint32_t* candidate = block.scratch.candidate;
  for (int64_t k = count; k % 4; ++k) candidate[k] = candidate[count - 1];
  for (int64_t k = 0; k < count; k += 4) {
    const float *frame[4], *token[4];
    for (int i = 0; i < 4; ++i) {
      frame[i] = frames + candidate[k + i] % kBlock * stride;
      token[i] = block.caption.rows + candidate[k + i] / kBlock * stride;
    }
    __m512 sum[4] = {};
    for (int64_t c = 0; c < stride; c += kLanes)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        sum[i] = _mm512_fmadd_ps(_mm512_load_ps(frame[i] + c), _mm512_load_ps(token[i] + c), sum[i]);
    const __m128 score = _mm_add_ps(sum_lanes(sum), _mm_setzero_ps());  // -0 becomes 0, so that both tie
    const __m128i high = ordered(_mm_castps_si128(score));
    const __m128i low = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<__m128i*>(candidate + k)), _mm_set1_epi32(-1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(block.scratch.key + k), _mm_unpacklo_epi32(low, high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(block.scratch.key + k + 2), _mm_unpackhi_epi32(low, high));
  }
}

// Returns the sum over the block's frames of the best score, and writes the winner indices unless `index` is null.
template <class Index>
float collect(const ScreenBlock& block, int64_t count, Index* index) {
  int64_t best[kBlock];
  for (int64_t& key : best) key = INT64_MIN;
  for (int64_t k = 0; k < count; ++k) {
    int64_t* frame = best + block.scratch.candidate[k] % kBlock;
    const int64_t key = block.scratch.key[k];
    *frame = key > *frame ? key : *frame;
  }
  float score[kBlock] = {};
  for (int64_t r = 0; r < block.frames; ++r) {
    const int32_t high = static_cast<int32_t>(best[r] >> 32);
    score[r] = bits_float(static_cast<uint32_t>(high ^ ((high >> 31) & static_cast<int32_t>(kMagnitudeMask))));
    if (index) index[r] = static_cast<Index>(~static_cast<uint32_t>(best[r]) / kBlock);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_loadu_ps(score), _mm512_loadu_ps(score + kLanes)));
}

// How often screening failed for a chunk and a caption. In a call that is screened, only the rows of that chunk and
// that caption decide which blocks are scored directly, so results do not depend on the threads or the other captions.
struct ScreenHistory {
  int64_t blocks = 0;
  int64_t failures = 0;

  // Screening is tried as long as at most one block in eight has failed.
  bool allows_screening() const { return failures * 8 <= blocks; }

  // Returns whether scoring this many candidates is clearly cheaper than scoring the block; counts a failure if not.
  bool record(const ScreenBlock& block, int64_t candidates) {
    constexpr int64_t kCandidateCost = 192;  // multiply-adds per candidate, on top of 2 per channel
    const int64_t screened_cost = candidates * (2 * block.D + kCandidateCost);
    const int64_t direct_cost = block.frames * block.tokens * block.D;
    const bool cheaper = 5 * screened_cost <= 4 * direct_cost;
    failures += !cheaper;
    return cheaper;
  }
};

// Offset of a caption in ScreenWorkspace::captions: the bytes of the captions and tokens before it.
int64_t screened_caption_offset(int64_t D, int64_t captions, int64_t tokens) {
  return captions * ScreenedCaption::kHeader + tokens * ScreenedCaption::token_bytes(D);
}

// The frames of a task's chunk, which are scored with one caption after another.
template <class T, class Index>
struct ScreenChunk {
  FrameChunk<T, Index> frames;
  ScreenScratch scratch;
  Magnitudes magnitudes;

  explicit ScreenChunk(const ScoreTask& task)
      : frames{task},
        scratch(task.screen.scratch, round_up(frames.count, kBlock), task.screen.longest_caption,
                padded_channels(frames.op.D)),
        magnitudes(quantize_frames(frames.rows, frames.source_row, frames.count, frames.op.D, scratch)) {
    for (int64_t b = 0; b < frames.count; b += kBlock) scratch.packed[b / kBlock] = false;
  }

  // Sum over the frames of the best score in caption j.
  float score(int64_t j) {
    const ScoreTask& task = frames.task;
    const int64_t* offset = task.captions.tokens.offset;
    const int64_t first_caption = task.captions.begin;
    const int64_t D = frames.op.D, tokens = offset[j + 1] - offset[j];
    const int64_t bytes = screened_caption_offset(D, j - first_caption, offset[j] - offset[first_caption]);
    const ScreenedCaption caption(task.screen.captions + bytes, tokens, padded_channels(D));
    const bool screenable = can_screen(*caption.bounds, tokens);
    Index* index = winner_indices<Index>(frames.op, task.winners, j, task.chunk.begin);
    ScreenHistory history;
    float sum = 0;
    for (int64_t b = 0; b < frames.count; b += kBlock) {
      const ScreenBlock block{scratch, caption, D, b, min(kBlock, frames.count - b), tokens};
      const bool screened = screenable && (task.screen.always || history.allows_screening());
      const int64_t candidates = screened ? find_candidates(block) : 0;
      ++history.blocks;
      if (screened && (history.record(block, candidates) || task.screen.always)) {
        rescore(block, candidates);
        sum += collect(block, candidates, index ? index + b : nullptr);
      } else {
        sum += score_directly(j, b, b + block.frames);
      }
    }
    return sum;
  }

  bool can_screen(const CaptionBounds& caption, int64_t tokens) const {
    return (frames.task.screen.always || worth_screening(tokens, frames.op.D)) && caption.quantized &&
           quantizable(magnitudes.largest) && quantizable(magnitudes.smallest_row_max);
  }

  // Scores a block without screening; packs its frames on first use.
  float score_directly(int64_t j, int64_t begin, int64_t end) {
    bool& packed = scratch.packed[begin / kBlock];
    if (!packed) frames.pack(begin, end);
    packed = true;
    return frames.score(j, begin, end, magnitudes);
  }
};

// The functions of ScreenKernels.

bool screening_applies(const MaxMean& op, int64_t valid_frames, int64_t longest_caption, bool always) {
  if (op.dtype == Dtype::bfloat16 || op.pairs || op.D > kMaxScreenChannels) return false;
  return always || (valid_frames >= kMinScreenFrames && op.text.num_sequences >= kMinScreenCaptions &&
                    worth_screening(longest_caption, op.D));
}

template <class Body>
void with_screened_dtype(Dtype dtype, const Body& body) {
  if (dtype == Dtype::float32) return body(Type<float>{});
  return body(Type<Float16>{});
}

void prepare_caption(const MaxMean& op, const ValidRows& tokens, int64_t caption, const Magnitudes& magnitudes,
                     char* prepared) {
  with_screened_dtype(op.dtype, [&](auto type) {
    quantize_caption(static_cast<const typename decltype(type)::type*>(op.text.rows),
                     tokens.source_row + tokens.offset[caption], tokens.offset[caption + 1] - tokens.offset[caption],
                     op.D, magnitudes, prepared);
  });
}

void screen(const ScoreTask& task) {
  with_screened_dtype(task.op->dtype, [&](auto type) {
    with_index(task.winners.index_bytes, [&](auto index) {
      score_clip<ScreenChunk<typename decltype(type)::type, typename decltype(index)::type>>(task);
    });
  });
}

}  // namespace
}  // namespace atk
