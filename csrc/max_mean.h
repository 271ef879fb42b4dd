// Max-mean similarity on the CPU: the problem, and the kernels that every instruction set provides.
//
//   sim[i,j] = mean_{t valid} max_{l valid} <audio[i,t], text[j,l]>
//
// Legend: n_a clips, n_t captions, l_a frames, l_t tokens, d channels. Plain structs only: this header is compiled
// with different instruction sets, and an inline function could be linked into the wrong one.
#pragma once

#include <cstdint>

namespace atk {

enum class Dtype { float32, bfloat16, float16 };

struct MaxMean {
  const void* audio;       // [n_a, l_a, d]
  const void* text;        // [n_t, l_t, d]
  const bool* audio_mask;  // [n_a, l_a], null: every frame is valid
  const bool* text_mask;   // [n_t, l_t], null: every token is valid
  void* index;             // [n_a, n_t, l_a] winning tokens, written by forward, read by backward; null: not wanted
  int index_bytes;         // 1 (unsigned), 2 or 4 (signed)
  Dtype dtype;             // of audio, text and their gradients
  int64_t n_a, n_t, l_a, l_t, d;
  int threads;
};

void max_mean_forward(const MaxMean& op, float* sim);                                    // sim [n_a, n_t]
void max_mean_backward(const MaxMean& op, const float* grad, void* grad_audio, void* grad_text);  // grad [n_a, n_t]

// Valid rows of a batch of padded sequences: sequence s keeps the positions position[first[s]] .. before first[s + 1].
struct ValidRows {
  const int32_t* position;
  const int64_t* first;
};

// Captions packed for the forward: valid tokens only, in tiles of [d][tokens of the tile].
struct PackedCaptions {
  const float* packed;     // caption j starts at packed + (rows.first[j] - rows.first[begin]) * d
  const float* magnitude;  // [end - begin] largest |component| of each caption, NaN if it holds one
  ValidRows rows;          // of all captions
  int64_t begin, end;
};

// One clip against a range of captions.
struct ScoreTask {
  const MaxMean* op;
  PackedCaptions captions;
  ValidRows frames;
  int64_t clip, caption_begin, caption_end;
  int64_t chunk;  // frames packed at a time, a multiple of Kernels::block
  float* packed;  // scratch [chunk * d]
  float* sim;     // [n_a, n_t]
};

// Gradient of frames [frame_begin, frame_end) of one clip, all captions.
struct FrameGradTask {
  const MaxMean* op;
  ValidRows frames;
  const int32_t* captions;  // [caption_count] captions with a valid token
  int64_t caption_count;
  const float* weight;  // [n_t] dL/dsim of this clip over its number of frames
  const float* text;    // [n_t * l_t, stride] float32
  int64_t stride;       // d rounded up to Kernels::lanes
  int64_t clip, frame_begin, frame_end;
  float* sum;  // scratch [frame_end - frame_begin, stride]
  void* grad_audio;
};

// Gradient of the captions captions[0 .. caption_count), all clips.
struct TokenGradTask {
  const MaxMean* op;
  ValidRows frames;
  const int32_t* captions;
  int64_t caption_count;
  const float* grad;  // [n_a, n_t]
  int64_t stride;     // as above
  int64_t chunk;      // frames taken at a time
  float* audio;       // scratch [chunk, stride]
  float* sum;         // scratch [caption_count, l_t, stride]
  int32_t* head;      // scratch [l_t]
  int32_t* lists;     // scratch [caption_count, 3 * chunk + 1]
  void* grad_text;
};

struct Kernels {
  const char* name;
  int64_t lanes;  // floats in a vector
  int64_t block;  // frames in a register tile
  float (*pack_caption)(const MaxMean& op, const ValidRows& tokens, int64_t caption, float* packed);
  void (*score)(const ScoreTask& task);
  void (*widen_rows)(const void* rows, Dtype dtype, int64_t count, int64_t d, int64_t stride, float* out);
  void (*frame_grad)(const FrameGradTask& task);
  void (*token_grad)(const TokenGradTask& task);
};

extern const Kernels kAvx512Kernels, kAvx2Kernels, kPortableKernels;

}  // namespace atk
