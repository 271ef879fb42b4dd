// Rows quantized to int8 for the screening in max_mean_screen.h, and bounds on the quantization error.
//
//   row = quantum (q + residual),   q int8,   |residual| <= 1/2 per component
//
// All norms are in units of the quantum, so that no square overflows or underflows; kNormSlack covers the rounding of
// the norms themselves.
#pragma once

#include "max_mean_score.h"
#include "simd_int8.h"

namespace atk {
namespace {

constexpr float kUnitRoundoff = 0x1p-24f;      // relative error of a float32 operation
constexpr float kNormSlack = 1.001f;           // exceeds the error of a norm of up to kMaxScreenChannels channels
constexpr int64_t kMaxScreenChannels = 16384;  // keeps the int32 scores below 2^30
constexpr int64_t kMaxScreenTokens = 4096;     // of a caption; bounds the scratch memory
constexpr int64_t kMaxPairwiseTokens = 64;     // of a caption whose tokens are compared pair by pair
constexpr int64_t kDotChannels = 4;            // int8 channels that an int32 lane multiplies in one instruction
constexpr float kInt8Max = 127;                // the largest quantized magnitude
constexpr int64_t kAlignment = 64;             // bytes

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

inline int64_t padded_channels(int64_t D) { return round_up(D, kLanes); }

inline int64_t dot_groups(int64_t D) { return (D + kDotChannels - 1) / kDotChannels; }

inline IntVec magnitude_bits(Vec x) { return reinterpret_cast<IntVec>(x) & static_cast<int32_t>(kMagnitudeMask); }

inline uint32_t largest_lane(IntVec x) {
  return static_cast<uint32_t>(combine_lanes<int32_t, kLanes>(x, [](auto a, auto b) { return a > b ? a : b; }));
}

// Widens row [D] to out [stride], zero-padded. Returns the bits of the largest magnitude (finite < infinity < NaN).
template <class T>
uint32_t copy_row(const T* row, int64_t D, int64_t stride, float* out) {
  IntVec largest = {};
  for (int64_t c = 0; c < stride; c += kLanes) {
    Vec x = {};
    if (D - c >= kLanes)
      x = load(row + c);
    else
      for (int64_t k = 0; k < D - c; ++k) x[k] = widen(row[c + k]);
    largest = maximum(largest, magnitude_bits(x));
    store(out + c, x);
  }
  return largest_lane(largest);
}

// Upper bounds on the norms of x = row / quantum and of x - round(x).
struct Norms {
  float row;
  float residual;
};

// Quantizes x = (row - center) / quantum: writes round(x), XORed byte by byte with `flip`, to out [stride] and,
// unless it is null, x - round(x) to residual_out [stride].
inline Norms quantize_row(const float* row, const float* center, float inverse_quantum, int64_t stride, uint8_t flip,
                          uint8_t* out, float* residual_out = nullptr) {
  constexpr float kRound = 0x1.8p23f;  // floats from here up are integers: adding it rounds x into the low bits
  Vec norm = {}, residual_norm = {};
  for (int64_t c = 0; c < stride; c += kLanes) {
    Vec x = load(row + c);
    if (center) x -= load(center + c);
    x *= inverse_quantum;
    const Vec shifted = x + kRound;
    const Vec residual = x - (shifted - kRound);
    if (residual_out) store(residual_out + c, residual);
    norm += x * x;
    residual_norm += residual * residual;
    store_low_bytes(out + c, reinterpret_cast<IntVec>(shifted) ^ flip);
  }
  const float length = __builtin_sqrtf(sum_of_lanes(norm)) * kNormSlack;
  // x itself carries the rounding of a subtraction and a multiplication.
  return {length, __builtin_sqrtf(sum_of_lanes(residual_norm)) * kNormSlack + 3 * kUnitRoundoff * length};
}

// Interleaves one row into [groups][lanes][kDotChannels]; `out` points to the row's lane.
inline void write_lane(const uint8_t* row, int64_t groups, int64_t lanes, uint8_t* out) {
  for (int64_t g = 0; g < groups; ++g)
    std::memcpy(out + g * lanes * kDotChannels, row + g * kDotChannels, kDotChannels);
}

// Bounds for the tokens of a caption, in units of the quantum.
struct CaptionBounds {
  bool quantized;  // false: the caption cannot be screened, and the rest of its memory is not set
  float diameter;  // largest distance between two tokens
  float error;     // largest distance between two residuals, plus 2 rounding errors of the score of a frame of norm 1
};

// A caption prepared for screening, in one block of memory: bounds, float32 rows, int8 rows, and corrections.
// The mean token is subtracted before quantizing. That shifts all scores of a frame equally and leaves smaller values
// to quantize if the tokens are similar. All tokens share one quantum, so that a frame's int32 scores are comparable.
struct ScreenedCaption {
  CaptionBounds* bounds;
  float* rows;          // [tokens, stride], the mean not subtracted
  uint8_t* quantized;   // tiles of [groups][tokens of the tile][kDotChannels]
  int32_t* correction;  // [tokens], cancels the frames' zero point in the scores

  static constexpr int64_t kHeader = kAlignment;
  static int64_t token_bytes(int64_t D) {
    constexpr int64_t kChannelBytes = sizeof(*rows) + sizeof(*quantized);
    constexpr int64_t kTokenBytes = sizeof(*correction);
    return round_up(padded_channels(D) * kChannelBytes + kTokenBytes, kAlignment);
  }

  ScreenedCaption(char* memory, int64_t tokens, int64_t stride)
      : bounds(reinterpret_cast<CaptionBounds*>(memory)),
        rows(reinterpret_cast<float*>(memory + kHeader)),
        quantized(reinterpret_cast<uint8_t*>(rows + tokens * stride)),
        correction(reinterpret_cast<int32_t*>(quantized + tokens * stride)) {}
};

// Writes the mean token to `center` and returns the bits of the largest magnitude of a centered component.
inline uint32_t center_tokens(const float* rows, int64_t count, int64_t stride, float* center) {
  IntVec largest = {};
  for (int64_t c = 0; c < stride; c += kLanes) {
    Vec mean = {};
    for (int64_t l = 0; l < count; ++l) mean += load(rows + l * stride + c);
    mean /= static_cast<float>(count);
    store(center + c, mean);
    for (int64_t l = 0; l < count; ++l)
      largest = maximum(largest, magnitude_bits(load(rows + l * stride + c) - mean));
  }
  return largest_lane(largest);
}

// Upper bound on the distance between any two of the rows [count, stride]. The true diameter is worth computing only
// for few rows: for random rows, it is about sqrt(2) times the largest norm; the triangle inequality gives 2 times.
inline float diameter(const float* rows, int64_t count, int64_t stride, float largest_norm) {
  constexpr int kRowsAtOnce = 4;
  if (count > kMaxPairwiseTokens) return 2 * largest_norm;
  float largest = 0;
  for (int64_t l = 1; l < count; ++l)
    for (int64_t k = 0; k < l; k += kRowsAtOnce) {
      Vec sum[kRowsAtOnce] = {};
      for (int64_t c = 0; c < stride; c += kLanes)
#pragma GCC unroll 4
        for (int i = 0; i < kRowsAtOnce; ++i) {
          const float* earlier = rows + (k + i < l ? k + i : l) * stride;
          const Vec gap = load(rows + l * stride + c) - load(earlier + c);
          sum[i] += gap * gap;
        }
      for (const Vec& square : sum) largest = __builtin_fmaxf(largest, sum_of_lanes(square));
    }
  return __builtin_sqrtf(largest) * kNormSlack;
}

// In this range no square and no score overflows, and a score loses far less to underflow than to rounding.
inline bool quantizable(float magnitude) { return magnitude > 1e-12f && magnitude < 1e15f; }

template <class T>
void quantize_caption(const T* rows, const int32_t* source_row, int64_t count, int64_t D, const Magnitudes& magnitudes,
                      char* memory) {
  const int64_t stride = padded_channels(D), groups = dot_groups(D);
  const ScreenedCaption caption(memory, count, stride);
  alignas(kAlignment) float center[kMaxScreenChannels];
  alignas(kAlignment) uint8_t row[kMaxScreenChannels];
  *caption.bounds = {};
  if (count > kMaxScreenTokens || !quantizable(magnitudes.largest)) return;
  for (int64_t l = 0; l < count; ++l) copy_row(rows + source_row[l] * D, D, stride, caption.rows + l * stride);
  const float largest = bits_float(center_tokens(caption.rows, count, stride, center));
  if (!quantizable(largest)) return;
  const float inverse_quantum = kInt8Max / largest;
  Norms max_norms = {};
  float max_centered_norm = 0;
  const float token_diameter = diameter(caption.rows, count, stride, FLT_MAX);
  const TokenTiles tiles = token_tiles(count);
  for (int64_t l = 0, tile = 0; l < count; ++tile) {
    const int64_t tile_tokens = tile_size(tiles, tile);
    for (int64_t k = 0; k < tile_tokens; ++k) {
      float* token = caption.rows + (l + k) * stride;
      max_norms.row = __builtin_fmaxf(max_norms.row, quantize_row(token, nullptr, inverse_quantum, stride, 0, row).row);
      const Norms norms = quantize_row(token, center, inverse_quantum, stride, 0, row, token);
      max_centered_norm = __builtin_fmaxf(max_centered_norm, norms.row);
      max_norms.residual = __builtin_fmaxf(max_norms.residual, norms.residual);
      int32_t sum = 0;
      for (int64_t c = 0; c < stride; ++c) sum += static_cast<int8_t>(row[c]);
      caption.correction[l + k] = -kFrameZeroPoint * sum;
      write_lane(row, groups, tile_tokens, caption.quantized + l * groups * kDotChannels + k * kDotChannels);
    }
    l += tile_tokens;
  }
  const float roundings = static_cast<float>(stride / kLanes + 8);  // per score, see rescore
  // caption.rows now holds the residuals.
  const float residual_diameter =
      diameter(caption.rows, count, stride, max_norms.residual) + 6 * kUnitRoundoff * max_centered_norm;
  *caption.bounds = {true, __builtin_fminf(token_diameter * inverse_quantum * kNormSlack, 2 * max_centered_norm),
                     residual_diameter + 2 * roundings * kUnitRoundoff * max_norms.row};
  for (int64_t l = 0; l < count; ++l) copy_row(rows + source_row[l] * D, D, stride, caption.rows + l * stride);
}

// A chunk of frames prepared for screening, and the scratch memory to screen a block of them.
struct ScreenScratch {
  float* rows;          // [chunk, stride]
  uint8_t* quantized;   // blocks of [groups][kBlock][kDotChannels], kFrameZeroPoint added
  float* residual;      // [chunk] norms of the residuals
  float* norm;          // [chunk] upper bounds on the norm of a frame, quantized or not
  int32_t* scores;      // [tokens, kBlock]
  uint32_t* candidate;  // [(tokens + 1) * kBlock] token * kBlock + frame
  int64_t* key;         // [(tokens + 1) * kBlock], see rescore
  bool* packed;         // [chunk / kBlock] whether the block's frames are packed for the float32 kernel

  static int64_t tokens(int64_t longest_caption) { return min(longest_caption, kMaxScreenTokens); }

  static int64_t bytes(int64_t chunk, int64_t longest_caption, int64_t D) {
    constexpr int64_t kChannelBytes = sizeof(*rows) + sizeof(*quantized);
    constexpr int64_t kFrameBytes = sizeof(*residual) + sizeof(*norm) + sizeof(*packed);
    constexpr int64_t kScoreBytes = sizeof(*scores) + sizeof(*candidate) + sizeof(*key);
    return round_up(chunk * (padded_channels(D) * kChannelBytes + kFrameBytes) +
                        (tokens(longest_caption) + 1) * kBlock * kScoreBytes,
                    kAlignment);
  }

  ScreenScratch(char* memory, int64_t chunk, int64_t longest_caption, int64_t stride)
      : rows(reinterpret_cast<float*>(memory)),
        quantized(reinterpret_cast<uint8_t*>(rows + chunk * stride)),
        residual(reinterpret_cast<float*>(quantized + chunk * stride)),
        norm(residual + chunk),
        scores(reinterpret_cast<int32_t*>(norm + chunk)),
        candidate(reinterpret_cast<uint32_t*>(scores + tokens(longest_caption) * kBlock)),
        key(reinterpret_cast<int64_t*>(candidate + (tokens(longest_caption) + 1) * kBlock)),
        packed(reinterpret_cast<bool*>(key + (tokens(longest_caption) + 1) * kBlock)) {}
};

template <class T>
Magnitudes quantize_frames(const T* rows, const int32_t* source_row, int64_t count, int64_t D,
                           const ScreenScratch& scratch) {
  const int64_t stride = padded_channels(D), groups = dot_groups(D);
  alignas(kAlignment) uint8_t row[kMaxScreenChannels];
  uint32_t smallest_row_max = float_bits(FLT_MAX), largest = 0;
  for (int64_t r = 0; r < round_up(count, kBlock); ++r) {
    float* wide = scratch.rows + r * stride;
    uint32_t row_max = 0;
    if (r < count)
      row_max = copy_row(rows + source_row[r] * D, D, stride, wide);
    else
      std::memset(wide, 0, stride * sizeof(float));
    largest = row_max > largest ? row_max : largest;
    smallest_row_max = row_max && row_max < smallest_row_max ? row_max : smallest_row_max;
    const float magnitude = bits_float(row_max), inverse_quantum = quantizable(magnitude) ? kInt8Max / magnitude : 0;
    const Norms norms = quantize_row(wide, nullptr, inverse_quantum, stride, kFrameZeroPoint, row);
    scratch.residual[r] = norms.residual;
    scratch.norm[r] = norms.row + norms.residual;
    write_lane(row, groups, kBlock,
               scratch.quantized + r / kBlock * kBlock * groups * kDotChannels + r % kBlock * kDotChannels);
  }
  return {bits_float(largest), bits_float(smallest_row_max)};
}

}  // namespace
}  // namespace atk
