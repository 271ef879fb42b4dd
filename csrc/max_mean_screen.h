// Exact float32 forward of the max-mean similarity through int8: for each frame, int8 products say which tokens can
// have won, and only those are scored in float32.
//
// With quanta s and p, a frame a = s (x + dx) and a centred token t = p (y + dy), x and y int8:
//
//   | <a, t> / (s p) - <x, y> | <= |dx| |t| / p + |x| |dy| =: e
//
// Two scores compare as their int32 approximations do unless these lie within 2 e. All candidates of a frame are
// scored in one order of operations, so equal tokens tie; e includes the rounding of that score, so the winner is the
// first maximum of all float32 scores, not just of the candidates'.
#pragma once

#include <climits>

#include "max_mean_quantize.h"

namespace atk {
namespace {

static_assert(kLanes == 16 && kTileVectors == 2, "blocks of two vectors of 16 frames");

constexpr int64_t kScreenTokens = 8;       // fewer, or fewer products a frame than kScreenProducts, are scored sooner
constexpr int64_t kScreenProducts = 1024;  // than screened
constexpr int64_t kScreenFrames = 1024;    // valid ones; fewer do not repay the quantisation of the captions
constexpr int64_t kScreenCaptions = 8;     // fewer do not repay the quantisation of the frames

inline bool repays(int64_t tokens, int64_t d) { return tokens >= kScreenTokens && tokens * d >= kScreenProducts; }

// A block of frames of one clip, against one caption.
struct ScreenBlock {
  const ScreenScratch& scratch;
  const ScreenedCaption& caption;
  int64_t d, first, frames, tokens;  // frames [first, first + frames) of the chunk
};

// Writes the int32 scores, and for each frame the least score of a candidate.
inline void approximate(const ScreenBlock& block, __m512i least[kTileVectors]) {
  using Tokens = std::make_integer_sequence<int, kTileTokens>;
  const int64_t groups = (block.d + 3) / 4;
  const bool wide = block.frames > kLanes;
  const ApproximateTile* tile = wide ? ApproximateTiles<2, Tokens>::tile : ApproximateTiles<1, Tokens>::tile;
  const uint8_t* frames = block.scratch.quantized + block.first * groups * 4;
  __m512i best[kTileVectors] = {_mm512_set1_epi32(INT_MIN / 2), _mm512_set1_epi32(INT_MIN / 2)};
  const TokenTiles tiles = token_tiles(block.tokens);
  for (int64_t l = 0, t = 0; l < block.tokens; ++t) {
    const int64_t n = tile_size(tiles, t);
    tile[n - 1](frames, block.caption.quantized + l * groups * 4, block.caption.offset + l, groups,
                block.scratch.scores + l * kBlock, best);
    l += n;
  }
  const CaptionBounds& bounds = *block.caption.bounds;
  for (int v = 0; v < kTileVectors; ++v) {
    const __m512 residual = _mm512_loadu_ps(block.scratch.residual + block.first + v * kLanes);
    const __m512 norm = _mm512_loadu_ps(block.scratch.norm + block.first + v * kLanes);
    __m512 width = _mm512_mul_ps(norm, _mm512_set1_ps(kUp * bounds.error));
    width = _mm512_fmadd_ps(residual, _mm512_set1_ps(kUp * bounds.spread), width);
    width = _mm512_min_ps(width, _mm512_set1_ps(0x1p30f));  // NaN, from 0 times infinity, too
    least[v] = _mm512_sub_epi32(best[v], _mm512_cvt_roundps_epi32(width, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC));
  }
}

// Lists the candidates, token by token; returns how many.
inline int64_t select(const ScreenBlock& block, const __m512i least[kTileVectors]) {
  const uint32_t valid = block.frames >= kBlock ? ~0u : (1u << block.frames) - 1;
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  uint32_t* out = block.scratch.candidate;
  for (int64_t l = 0; l < block.tokens; ++l)
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) {
      const __m512i score = _mm512_loadu_si512(block.scratch.scores + l * kBlock + v * kLanes);
      const __mmask16 chosen =
          _mm512_mask_cmpge_epi32_mask(static_cast<__mmask16>(valid >> v * kLanes), score, least[v]);
      const __m512i name = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int32_t>(l * kBlock + v * kLanes)));
      _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(chosen, name));
      out += __builtin_popcount(chosen);
    }
  return out - block.scratch.candidate;
}

inline int64_t find_candidates(const ScreenBlock& block) {
  __m512i least[kTileVectors];
  approximate(block, least);
  return select(block, least);
}

// The sums of four vectors.
inline __m128 sum_lanes(const __m512 (&x)[4]) {
  const __m512 even = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const __m512 odd = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  const __m512 quarter = _mm512_add_ps(_mm512_shuffle_ps(even, odd, 0x44), _mm512_shuffle_ps(even, odd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(quarter), _mm512_extractf32x8_ps(quarter, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// Integers that order as floats do (its own inverse).
inline __m128i ordered(__m128i bits) {
  return _mm_xor_si128(bits, _mm_srli_epi32(_mm_srai_epi32(bits, 31), 1));
}

// Scores the candidates in float32. Keys order by score, then the first token first.
inline void rescore(const ScreenBlock& block, int64_t count) {
  const int64_t stride = round_up(block.d, 16);
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
    for (int64_t c = 0; c < stride; c += 16)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        sum[i] = _mm512_fmadd_ps(_mm512_load_ps(frame[i] + c), _mm512_load_ps(token[i] + c), sum[i]);
    const __m128 score = _mm_add_ps(sum_lanes(sum), _mm_setzero_ps());  // -0 ties with 0
    const __m128i high = ordered(_mm_castps_si128(score));
    const __m128i low = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<__m128i*>(candidate + k)), _mm_set1_epi32(-1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(block.scratch.key + k), _mm_unpacklo_epi32(low, high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(block.scratch.key + k + 2), _mm_unpackhi_epi32(low, high));
  }
}

// Sum over the block's frames of the best score.
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
    score[r] = bits_float(static_cast<uint32_t>(high ^ ((high >> 31) & 0x7fffffff)));
    if (index) index[r] = static_cast<Index>(~static_cast<uint32_t>(best[r]) / kBlock);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_loadu_ps(score), _mm512_loadu_ps(score + kLanes)));
}

// How often screening failed for a chunk and a caption. Their rows alone decide which blocks are scored directly, so
// the result does not depend on threads, on the order of work, or on which other captions are asked for.
struct Trials {
  int64_t blocks = 0, failures = 0;

  bool allowed() const { return failures * 8 <= blocks; }  // of eight blocks, at most one is screened in vain

  // Counts a block with so many candidates; returns whether it takes less to score them than the whole block.
  bool passes(const ScreenBlock& block, int64_t candidates) {
    const bool pass = 5 * candidates * (2 * block.d + 192) <= 4 * block.frames * block.tokens * block.d;
    failures += !pass;
    return pass;
  }
};

// Where a caption starts in Screen::captions, after so many captions and tokens.
int64_t screened_caption_offset(int64_t d, int64_t captions, int64_t tokens) {
  return captions * ScreenedCaption::kHeader + tokens * ScreenedCaption::token_bytes(d);
}

// The frames of a task's chunk, against one caption after another.
template <class T, class Index>
struct ScreenChunk {
  FrameChunk<T, Index> frames;
  ScreenScratch scratch;
  Magnitudes magnitudes;

  explicit ScreenChunk(const ScoreTask& task)
      : frames{task},
        scratch(task.screen.scratch, round_up(frames.count, kBlock), task.screen.longest_caption,
                round_up(frames.op.d, 16)),
        magnitudes(quantize_frames(frames.rows, frames.row, frames.count, frames.op.d, scratch)) {
    for (int64_t b = 0; b < frames.count; b += kBlock) scratch.packed[b / kBlock] = false;
  }

  // Sum over the frames of the best score in caption j.
  float score(int64_t j) {
    const ScoreTask& task = frames.task;
    const int64_t* first = task.captions.tokens.first;
    const int64_t d = frames.op.d, tokens = first[j + 1] - first[j], before = first[j] - first[task.captions.begin];
    char* prepared = task.screen.captions + screened_caption_offset(d, j - task.captions.begin, before);
    const ScreenedCaption caption(prepared, tokens, round_up(d, 16));
    const bool screen = screenable(*caption.bounds, tokens);
    Index* index = winners_of<Index>(frames.op, task.winners, j, task.chunk.begin);
    Trials trials;
    float sum = 0;
    for (int64_t b = 0; b < frames.count; b += kBlock) {
      const ScreenBlock block{scratch, caption, d, b, min(kBlock, frames.count - b), tokens};
      const bool trial = screen && (task.screen.always || trials.allowed());
      const int64_t candidates = trial ? find_candidates(block) : 0;
      ++trials.blocks;
      if (trial && (trials.passes(block, candidates) || task.screen.always)) {
        rescore(block, candidates);
        sum += collect(block, candidates, index ? index + b : nullptr);
      } else {
        sum += score_directly(j, b, b + block.frames);
      }
    }
    return sum;
  }

  bool screenable(const CaptionBounds& caption, int64_t tokens) const {
    return (frames.task.screen.always || repays(tokens, frames.op.d)) && caption.quantized &&
           quantizable(magnitudes.largest) && quantizable(magnitudes.smallest_row);
  }

  // A block is packed when it is first needed.
  float score_directly(int64_t j, int64_t begin, int64_t end) {
    bool& packed = scratch.packed[begin / kBlock];
    if (!packed) frames.pack(begin, end);
    packed = true;
    return frames.score(j, begin, end, magnitudes);
  }
};

// The interface of ScreenKernels.

bool screening_applies(const MaxMean& op, int64_t valid_frames, int64_t longest_caption, bool always) {
  if (op.dtype == Dtype::bfloat16 || op.pairs || op.d > kScreenChannels) return false;
  return always || (valid_frames >= kScreenFrames && op.text.count >= kScreenCaptions && repays(longest_caption, op.d));
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
                     tokens.row + tokens.first[caption], tokens.first[caption + 1] - tokens.first[caption], op.d,
                     magnitudes, prepared);
  });
}

void screen(const ScoreTask& task) {
  with_screened_dtype(task.op->dtype, [&](auto type) {
    with_index(task.winners.bytes, [&](auto index) {
      score_clip<ScreenChunk<typename decltype(type)::type, typename decltype(index)::type>>(task);
    });
  });
}

}  // namespace
}  // namespace atk
