// Max-mean similarity on the CPU: the arguments of a call, and the kernels that every instruction set provides.
//
//   sim[i,j] = mean_{t valid} max_{l valid} <audio[i,t], text[j,l]>
//
// Shapes: N_a clips in T_a rows of frames, N_t captions in T_t rows of tokens, D channels.
// Plain structs only: this header is compiled for several instruction sets, and the linker could pick a copy of an
// inline function that the CPU cannot run.
#pragma once

#include <cstdint>

namespace atk {

enum class Dtype { float32, bfloat16, float16 };

constexpr int64_t kSpan = 32;  // channels in a span; the backward works span by span

// Packed sequences of rows: sequence s is rows[cu_seqlens[s]:cu_seqlens[s + 1]].
struct Sequences {
  const void* rows;           // [num_rows, D]
  const int32_t* cu_seqlens;  // [num_sequences + 1]
  const bool* mask;           // [num_rows], true = valid; null: every row is valid
  int64_t num_sequences;      // N_a or N_t
  int64_t num_rows;           // T_a or T_t
};

struct MaxMean {
  Sequences audio;
  Sequences text;
  Dtype dtype;  // of audio, text, and their gradients
  int64_t D;
  bool pairs;  // clip i with caption i only: [N_a, N_t] below becomes [N]
  int threads;
};

// Winning tokens [captions, T_a]; a single row with pairs. The entries of a row belong to the valid frames, in order;
// an entry is the token's index among the valid tokens of its caption.
struct Winners {
  void* index;            // null: not wanted
  int index_bytes;        // per entry: 1 (unsigned), or 2 or 4 (signed)
  int64_t first_caption;  // caption of row 0
};

// Writes sim [N_a, N_t] and, unless winners.index is null, the winner indices.
void max_mean_forward(const MaxMean& op, const Winners& winners, float* sim);

// Reads grad [N_a, N_t]. If winners.index is null, the winners are recomputed for as many captions at a time as fit in
// `workspace` bytes.
void max_mean_backward(const MaxMean& op, const Winners& winners, int64_t workspace, const float* grad,
                       void* grad_audio, void* grad_text);

// Valid rows of a batch of sequences: those of sequence s are source_row[offset[s]:offset[s + 1]].
struct ValidRows {
  const int32_t* source_row;
  const int64_t* offset;
};

// The valid frames [begin, end), counted over all clips, of the clips [clip, clip + clips). The first one may have begun
// before, and a single one may go on.
struct Chunk {
  int64_t clip, clips, begin, end;
};

struct Magnitudes {
  float largest;           // largest |component|; NaN if any component is NaN
  float smallest_row_max;  // smallest row maximum of |component|, all-zero rows excluded
};

// Captions packed for the forward: valid tokens only, in tiles of [words][tokens of the tile].
struct PackedCaptions {
  const float* packed;           // caption j starts at packed + (tokens.offset[j] - tokens.offset[begin]) * words
  const Magnitudes* magnitudes;  // [end - begin]
  ValidRows tokens;              // of all captions
  int64_t begin, end;
};

// Additional inputs of ScreenKernels::score.
struct ScreenWorkspace {
  char* captions;           // captions as ScreenKernels::prepare_caption writes them
  int64_t longest_caption;  // tokens of the longest caption of the whole call
  char* scratch;            // of the size that ScreenKernels::scratch_bytes returns
  bool always;              // see ScreenKernels::applies
};

// Scores of a chunk of frames with the captions [caption_begin, caption_end).
struct ScoreTask {
  const MaxMean* op;
  Winners winners;
  PackedCaptions captions;
  ValidRows frames;
  Chunk chunk;
  int64_t caption_begin, caption_end;
  const float* grad;     // [N_a, N_t]: pairs with gradient 0 are left out; null: all pairs are scored
  float* packed_frames;  // scratch for the chunk's frames, in whole register tiles
  float* best_scores;    // scratch for a score of each frame, and for one more register tile
  float* sums;           // [chunk.clips, captions.end - captions.begin], over the chunk's frames of each clip
  ScreenWorkspace screen;
};

// Gradient of a chunk of frames in the spans [span_begin, span_end).
struct FrameGradTask {
  const MaxMean* op;
  Winners winners;
  ValidRows frames, tokens;
  Chunk chunk;
  int64_t caption_begin, caption_end;
  int64_t span_begin, span_end;
  const float* grad;             // [N_a, N_t]
  const void* packed_text;       // all tokens, as pack_spans writes them
  float* sums;                   // [spans, frames of the chunk, kSpan], kept from one range of captions to the next
  bool first_range, last_range;  // whether this is the first or last range of captions
  void* grad_audio;
};

// Gradient of the captions [caption_begin, caption_end) in the spans [span_begin, span_end), from all clips.
struct TokenGradTask {
  const MaxMean* op;
  Winners winners;
  ValidRows frames, tokens;
  int64_t caption_begin, caption_end;
  int64_t span_begin, span_end;
  const float* grad;     // [N_a, N_t]
  int64_t chunk_frames;  // frames processed at a time
  float* packed_frames;  // scratch [span_end - span_begin, chunk_frames, kSpan]
  float* partial;        // scratch [tokens of these captions, span_end - span_begin, kSpan]
  float* total;          // scratch of the same shape
  void* grad_text;
};

// A forward that computes float32 scores only where int8 scores cannot rule out a token. It finds the same winners in
// less time.
struct ScreenKernels {
  // Whether to screen this call; `always` ignores the expected gain.
  bool (*applies)(const MaxMean& op, int64_t valid_frames, int64_t longest_caption, bool always);
  int64_t (*caption_offset)(int64_t D, int64_t captions, int64_t tokens);  // bytes of that many prepared captions
  int64_t (*scratch_bytes)(int64_t frames, int64_t longest_caption, int64_t D);
  void (*prepare_caption)(const MaxMean& op, const ValidRows& tokens, int64_t caption, const Magnitudes& magnitudes,
                          char* prepared);
  void (*score)(const ScoreTask& task);
};

// A product of bfloat16 rows, see product.h.
struct ProductTask {
  const void* left;      // [left_rows, D]
  const void* right;     // [right_rows, D]
  const int32_t* order;  // 0, 1, 2, ...
  int64_t left_rows;
  int64_t right_rows;
  int64_t D;
  float factor;
  float* packed_left;  // [words, left_rows], in tiles
  float* out;
  int64_t stride;
};

struct ProductKernels {
  int64_t tile;   // left rows
  int64_t panel;  // right rows
  void (*pack_left)(const ProductTask& task, int64_t tile);
  void (*multiply)(const ProductTask& task, int64_t panel, float* packed_right);
};

struct Logits;  // exponentials.h
struct GradientParts;

struct Kernels {
  const char* name;
  int64_t block;              // frames in a register tile
  int64_t bfloat16_per_word;  // channels per 32-bit word of packed bfloat16 rows; always 1 for the other dtypes
  Magnitudes (*pack_caption)(const MaxMean& op, const ValidRows& tokens, int64_t caption, float* packed);
  void (*score)(const ScoreTask& task);
  // Packs the rows source_row[begin:end] into packed [spans, valid_rows, kSpan].
  void (*pack_spans)(const void* rows, Dtype dtype, int64_t D, const int32_t* source_row, int64_t begin, int64_t end,
                     int64_t valid_rows, void* packed);
  void (*frame_grad)(const FrameGradTask& task);
  void (*token_grad)(const TokenGradTask& task);
  void (*normalize)(const void* rows, Dtype dtype, const bool* mask, int64_t begin, int64_t end, int64_t D, void* unit,
                    float* inverse_norm);
  void (*normalize_grad)(const void* grad, const void* unit, Dtype dtype, const float* inverse_norm, int64_t begin,
                         int64_t end, int64_t D, void* grad_rows);
  // Rows [begin, end) of the functions of the same names in exponentials.h.
  void (*add_exponentials)(const Logits& logits, int64_t begin, int64_t end, float* row_sums, float* column_sums);
  double (*logit_gradients)(const Logits& logits, const GradientParts& gradients, int64_t begin, int64_t end,
                            void* out, Dtype out_dtype, int64_t out_stride);
  const ScreenKernels* screen;    // null: this instruction set does not screen
  const ProductKernels* product;  // null: no instruction multiplies pairs of bfloat16 channels
};

// Null if the compiler lacks these instructions, or for another processor.
extern const Kernels* const kAvx512Bf16Kernels;
extern const Kernels* const kAvx512VnniKernels;
extern const Kernels* const kAvx512Kernels;
extern const Kernels* const kAvx2VnniKernels;
extern const Kernels* const kAvx2Kernels;
extern const Kernels* const kNeonBf16Kernels;
extern const Kernels* const kNeonDotKernels;
extern const Kernels* const kBaselineKernels;  // for any processor; never null

}  // namespace atk
