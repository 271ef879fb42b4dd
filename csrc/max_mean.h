// Max-mean similarity on the CPU: the problem, and the kernels that every instruction set provides.
//
//   sim[i,j] = mean_{t valid} max_{l valid} <audio[i,t], text[j,l]>
//
// Clips and captions are sequences of rows, one after another. Plain structs only: this header is compiled with
// different instruction sets, and an inline function could be linked into the wrong one.
#pragma once

#include <cstdint>

namespace atk {

enum class Dtype { float32, bfloat16, float16 };

constexpr int64_t kSpan = 32;  // channels that the backward takes at a time

struct Sequences {
  const void* rows;           // [total, d]
  const int32_t* cu_seqlens;  // [count + 1]: sequence s is rows[cu_seqlens[s]] .. before rows[cu_seqlens[s + 1]]
  const bool* mask;           // [total], null: every row is valid
  int64_t count, total;
};

struct MaxMean {
  Sequences audio, text;
  Dtype dtype;  // of audio, text and their gradients
  int64_t d;
  bool pairs;  // clip i against caption i only; [n_a, n_t] below then means [n]
  int threads;
};

// Winning tokens [captions, audio.total], one row in all with pairs. A row holds the valid frames alone, one after
// another, and numbers the tokens of its caption without the padding.
struct Winners {
  void* index;            // null: not wanted
  int bytes;              // of an entry: 1 (unsigned), 2 or 4 (signed)
  int64_t first_caption;  // of the first row
};

void max_mean_forward(const MaxMean& op, const Winners& winners, float* sim);  // sim [n_a, n_t]

// Without winners.index the winners are found again for as many captions at a time as `workspace` bytes hold.
void max_mean_backward(const MaxMean& op, const Winners& winners, int64_t workspace, const float* grad,
                       void* grad_audio, void* grad_text);  // grad [n_a, n_t]

// Valid rows of a batch of sequences: sequence s has the rows row[first[s]] .. before row[first[s + 1]].
struct ValidRows {
  const int32_t* row;
  const int64_t* first;
};

// A piece of a clip: its valid frames begin .. before end, counted over all clips.
struct Chunk {
  int64_t clip, begin, end;
};

struct Magnitudes {
  float largest;       // component; NaN if there is one
  float smallest_row;  // the least of the rows' largest components, rows of zeros left out
};

// Captions packed for the forward: valid tokens only, in tiles of [words][tokens of the tile].
struct PackedCaptions {
  const float* packed;           // caption j starts at packed + (tokens.first[j] - tokens.first[begin]) * words
  const Magnitudes* magnitudes;  // [end - begin]
  ValidRows tokens;              // of all captions
  int64_t begin, end;
};

// What ScreenKernels::score needs besides.
struct Screen {
  char* captions;           // the packed captions once more, as ScreenKernels::prepare_caption leaves them
  int64_t longest_caption;  // of all captions
  char* scratch;            // of ScreenKernels::scratch_bytes
  bool always;              // as for ScreenKernels::applies
};

// One chunk of frames against the captions caption_begin .. before caption_end.
struct ScoreTask {
  const MaxMean* op;
  Winners winners;
  PackedCaptions captions;
  ValidRows frames;
  Chunk chunk;
  int64_t caption_begin, caption_end;
  const float* grad;  // [n_a, n_t]: pairs where it is 0 are left out; null: all are scored
  float* packed;      // scratch, for the chunk's frames in whole register tiles
  float* sum;         // [captions.end - captions.begin] sums over the chunk's frames
  Screen screen;
};

// Gradient of a chunk of frames in the channels of the spans span_begin .. before span_end.
struct FrameGradTask {
  const MaxMean* op;
  Winners winners;
  ValidRows frames, tokens;
  Chunk chunk;
  int64_t caption_begin, caption_end, span_begin, span_end;
  const float* grad;  // [n_a, n_t]
  const void* text;   // what pack_spans wrote for all tokens
  float* sum;         // [spans, frames of the chunk, kSpan] carried from one range of captions to the next
  bool first, last;   // range of captions
  void* grad_audio;
};

// Gradient of the captions caption_begin .. before caption_end in some spans, all clips.
struct TokenGradTask {
  const MaxMean* op;
  Winners winners;
  ValidRows frames, tokens;
  int64_t caption_begin, caption_end, span_begin, span_end;
  const float* grad;  // [n_a, n_t]
  int64_t chunk;      // frames taken at a time
  float* audio;       // scratch [span_end - span_begin, chunk, kSpan]
  float *sum, *total;  // scratch [tokens of these captions, span_end - span_begin, kSpan]
  void* grad_text;
};

// Forward that scores in float32 only what int8 products cannot rule out: the same winners, sooner.
struct ScreenKernels {
  // Whether to screen this problem at all; `always`: whatever it costs.
  bool (*applies)(const MaxMean& op, int64_t valid_frames, int64_t longest_caption, bool always);
  int64_t (*caption_offset)(int64_t d, int64_t captions, int64_t tokens);  // bytes that so many of them take
  int64_t (*scratch_bytes)(int64_t frames, int64_t longest_caption, int64_t d);
  void (*prepare_caption)(const MaxMean& op, const ValidRows& tokens, int64_t caption, const Magnitudes& magnitudes,
                          char* prepared);
  void (*score)(const ScoreTask& task);
};

struct Kernels {
  const char* name;
  int64_t block;              // frames in a register tile
  int64_t bfloat16_per_word;  // channels in a 32-bit word of the packed rows, for bfloat16; one for other types
  Magnitudes (*pack_caption)(const MaxMean& op, const ValidRows& tokens, int64_t caption, float* packed);
  void (*score)(const ScoreTask& task);
  // Packs the rows row[begin] .. before row[end], of `total` in all, as [spans, total, kSpan].
  void (*pack_spans)(const void* rows, Dtype dtype, int64_t d, const int32_t* row, int64_t begin, int64_t end,
                     int64_t total, void* packed);
  void (*frame_grad)(const FrameGradTask& task);
  void (*token_grad)(const TokenGradTask& task);
  void (*normalize)(const void* rows, Dtype dtype, const bool* mask, int64_t begin, int64_t end, int64_t d, void* unit,
                    float* inverse_norm);
  void (*normalize_grad)(const void* grad, const void* unit, Dtype dtype, const float* inverse_norm, int64_t begin,
                         int64_t end, int64_t d, void* grad_rows);
  const ScreenKernels* screen;  // null: this instruction set has none
};

extern const Kernels kAvx512Kernels, kAvx2Kernels, kPortableKernels;
extern const Kernels* const kAvx512Bf16Kernels;  // null where the compiler does not know these instructions

}  // namespace atk
