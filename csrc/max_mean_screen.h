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
constexpr bool kScreensBfloat16 = kBfloat16PerWord == 1;  // products of pairs of channels are fast enough

inline bool worth_screening(int64_t tokens, int64_t D) {
  return tokens >= kMinScreenTokens && tokens * D >= kMinScreenProducts;
}

// Whether clips are long enough on average. Blocks of short clips have empty lanes, while register tiles hold several
// clips, and what a block costs beyond its products counts for more with few of them.
inline bool worth_screening_clips(int64_t valid_frames, int64_t clips, int64_t tokens, int64_t D) {
  return valid_frames >= clips * (kBlock / 4.0 + 16384.0 / (tokens * D));
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
inline void approximate(const ScreenBlock& block, IntVec threshold[kTileVectors]) {
  const int64_t groups = dot_groups(block.D);
  const auto* tile = Tiles<ApproximateTile>::width[(block.frames + kLanes - 1) / kLanes - 1];
  const uint8_t* frames = block.scratch.quantized + block.first * groups * kDotChannels;
  IntVec best[kTileVectors];
  for (IntVec& score : best) score = IntVec{} + INT_MIN / 4;  // below any score, and no overflow of the threshold
  const TokenTiles tiles = token_tiles(block.tokens);
  for (int64_t l = 0, t = 0; l < block.tokens; ++t) {
    const int64_t tile_tokens = tile_size(tiles, t);
    tile[tile_tokens - 1](frames, block.caption.quantized + l * groups * kDotChannels, block.caption.correction + l,
                          groups, block.scratch.scores + l * kBlock, best);
    l += tile_tokens;
  }
  const CaptionBounds& bounds = *block.caption.bounds;
  const Vec largest_margin = Vec{} + 0x1p30f;
  for (int v = 0; v < kTileVectors; ++v) {
    Vec margin = load(block.scratch.norm + block.first + v * kLanes) * (kNormSlack * bounds.error);
    margin += load(block.scratch.residual + block.first + v * kLanes) * (kNormSlack * bounds.diameter);
    margin = margin < largest_margin ? margin : largest_margin;  // also replaces a NaN from 0 * infinity
    threshold[v] = best[v] - (__builtin_convertvector(margin, IntVec) + 1);
  }
}

// Lists the candidates, token by token, and returns their count.
inline int64_t select(const ScreenBlock& block, const IntVec threshold[kTileVectors]) {
  constexpr int64_t kTokensAtOnce = 64 / kBlock;
  const uint64_t valid = (uint64_t{1} << min(block.frames, kBlock)) - 1;
  uint32_t* out = block.scratch.candidate;
  for (int64_t first = 0; first < block.tokens; first += kTokensAtOnce) {
    uint64_t selected = 0;
    for (int64_t l = first; l < min(first + kTokensAtOnce, block.tokens); ++l) {
      uint64_t frames = 0;
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) {
        IntVec score;
        std::memcpy(&score, block.scratch.scores + l * kBlock + v * kLanes, sizeof score);
        frames |= not_below(score, threshold[v]) << v * kLanes;
      }
      selected |= (frames & valid) << (l - first) * kBlock;
    }
    out = append_bits(selected, static_cast<uint32_t>(first * kBlock), out);
  }
  return out - block.scratch.candidate;
}

inline int64_t find_candidates(const ScreenBlock& block) {
  IntVec threshold[kTileVectors];
  approximate(block, threshold);
  return select(block, threshold);
}

// Maps the bits of floats to integers of the same order. The mapping is its own inverse.
inline int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & static_cast<int32_t>(kMagnitudeMask)); }

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
    Vec sum[4] = {};
    for (int64_t c = 0; c < stride; c += kLanes)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sum[i] += load(frame[i] + c) * load(token[i] + c);
    const FourFloats score = sum_lanes(sum) + 0.0f;  // -0 becomes 0, so that both tie
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const uint32_t high = static_cast<uint32_t>(ordered(static_cast<int32_t>(float_bits(score[i]))));
      block.scratch.key[k + i] = static_cast<int64_t>(static_cast<uint64_t>(high) << 32 | ~candidate[k + i]);
    }
  }
}

// Writes the best score of each of the block's frames, and the winner indices unless `index` is null.
template <class Index>
void collect(const ScreenBlock& block, int64_t count, float* scores, Index* index) {
  int64_t best[kBlock];
  for (int64_t& key : best) key = INT64_MIN;
  for (int64_t k = 0; k < count; ++k) {
    int64_t* frame = best + block.scratch.candidate[k] % kBlock;
    const int64_t key = block.scratch.key[k];
    *frame = key > *frame ? key : *frame;
  }
  for (int64_t r = 0; r < block.frames; ++r) {
    scores[r] = bits_float(static_cast<uint32_t>(ordered(static_cast<int32_t>(best[r] >> 32))));
    if (index) index[r] = static_cast<Index>(~static_cast<uint32_t>(best[r]) / kBlock);
  }
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

  void pack() {}  // when a block is scored without screening

  // Writes the best score in caption j of each frame.
  void score(int64_t j) {
    const ScoreTask& task = frames.task;
    const int64_t* offset = task.captions.tokens.offset;
    const int64_t first_caption = task.captions.begin;
    const int64_t D = frames.op.D, tokens = offset[j + 1] - offset[j];
    const int64_t bytes = screened_caption_offset(D, j - first_caption, offset[j] - offset[first_caption]);
    const ScreenedCaption caption(task.screen.captions + bytes, tokens, padded_channels(D));
    const bool screenable = can_screen(*caption.bounds, tokens);
    Index* index = winner_indices<Index>(frames.op, task.winners, j, task.chunk.begin);
    ScreenHistory history;
    for (int64_t b = 0; b < frames.count; b += kBlock) {
      const ScreenBlock block{scratch, caption, D, b, min(kBlock, frames.count - b), tokens};
      const bool screened = screenable && (task.screen.always || history.allows_screening());
      const int64_t candidates = screened ? find_candidates(block) : 0;
      ++history.blocks;
      if (screened && (history.record(block, candidates) || task.screen.always)) {
        rescore(block, candidates);
        collect(block, candidates, task.best_scores + b, index ? index + b : nullptr);
      } else {
        score_directly(j, b, b + block.frames);
      }
    }
  }

  bool can_screen(const CaptionBounds& caption, int64_t tokens) const {
    return (frames.task.screen.always || worth_screening(tokens, frames.op.D)) && caption.quantized &&
           quantizable(magnitudes.largest) && quantizable(magnitudes.smallest_row_max);
  }

  // Scores a block without screening; packs its frames on first use.
  void score_directly(int64_t j, int64_t begin, int64_t end) {
    bool& packed = scratch.packed[begin / kBlock];
    if (!packed) frames.pack(begin, end);
    packed = true;
    frames.score(j, begin, end, magnitudes);
  }
};

// The functions of ScreenKernels.

bool screening_applies(const MaxMean& op, int64_t valid_frames, int64_t longest_caption, bool always) {
  if ((op.dtype == Dtype::bfloat16 && !kScreensBfloat16) || op.pairs || op.D > kMaxScreenChannels) return false;
  return always || (valid_frames >= kMinScreenFrames && op.text.num_sequences >= kMinScreenCaptions &&
                    worth_screening(longest_caption, op.D) &&
                    worth_screening_clips(valid_frames, op.audio.num_sequences, longest_caption, op.D));
}

template <class Body>
void with_screened_dtype(Dtype dtype, const Body& body) {
  if constexpr (kScreensBfloat16)
    if (dtype == Dtype::bfloat16) return body(Type<BFloat16>{});
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
      ScreenChunk<typename decltype(type)::type, typename decltype(index)::type> chunk(task);
      score_captions(task, chunk);
    });
  });
}

const ScreenKernels kScreenTable = {screening_applies, screened_caption_offset, ScreenScratch::bytes, prepare_caption,
                                    screen};

}  // namespace
}  // namespace atk
