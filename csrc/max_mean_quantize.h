// Rows quantised to int8 for the screening of max_mean_screen.h, with what the rounding can change at most, and the
// products of such rows.
// All norms are in units of the quantum, so no square over- or underflows; kUp covers their own rounding.
#pragma once

#include <immintrin.h>

#include "max_mean_score.h"

namespace atk {
namespace {

constexpr float kUnit = 0x1p-24f;            // relative error of one float32 operation
constexpr float kUp = 1.001f;                // more than the error of a norm of up to kScreenChannels channels
constexpr int64_t kScreenChannels = 16384;   // the int32 scores stay below 2^30
constexpr int64_t kScreenPairs = 64;         // tokens that are compared pair by pair
constexpr int64_t kScreenMostTokens = 4096;  // of a caption: bounds the scratch

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

inline __m512 load_channels(const float* p, __mmask16 valid) { return _mm512_maskz_loadu_ps(valid, p); }

inline __m512 load_channels(const Float16* p, __mmask16 valid) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(valid, p));
}

inline __m512i magnitude_bits(__m512 x) {
  return _mm512_and_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

// Widens row [d] to out [stride], zeros from d on. Returns the bits of its largest magnitude: finite < inf < NaN.
template <class T>
uint32_t copy_row(const T* row, int64_t d, int64_t stride, float* out) {
  __m512i largest = _mm512_setzero_si512();
  for (int64_t c = 0; c < stride; c += 16) {
    const __mmask16 valid = static_cast<__mmask16>(d - c >= 16 ? 0xffff : (1u << (d - c)) - 1);
    const __m512 x = load_channels(row + c, valid);
    largest = _mm512_max_epu32(largest, magnitude_bits(x));
    _mm512_store_ps(out + c, x);
  }
  return _mm512_reduce_max_epu32(largest);
}

struct Norms {
  float row, residual;  // of x = row / quantum and of x - round(x)
};

// With x = (row - center) / quantum, out [stride] = round(x), exclusive or `flip` byte by byte; rest = x - round(x).
inline Norms quantize_row(const float* row, const float* center, float inverse_quantum, int64_t stride, uint8_t flip,
                          uint8_t* out, float* rest_out = nullptr) {
  __m512 norm = _mm512_setzero_ps(), residual = norm;
  for (int64_t c = 0; c < stride; c += 16) {
    __m512 x = _mm512_load_ps(row + c);
    if (center) x = _mm512_sub_ps(x, _mm512_load_ps(center + c));
    x = _mm512_mul_ps(x, _mm512_set1_ps(inverse_quantum));
    const __m512i q = _mm512_cvtps_epi32(x);
    const __m512 rest = _mm512_sub_ps(x, _mm512_cvtepi32_ps(q));
    if (rest_out) _mm512_store_ps(rest_out + c, rest);
    norm = _mm512_fmadd_ps(x, x, norm);
    residual = _mm512_fmadd_ps(rest, rest, residual);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + c),
                     _mm_xor_si128(_mm512_cvtsepi32_epi8(q), _mm_set1_epi8(static_cast<char>(flip))));
  }
  const float length = __builtin_sqrtf(_mm512_reduce_add_ps(norm)) * kUp;
  // x itself is the result of a subtraction and a multiplication, each rounded.
  return {length, __builtin_sqrtf(_mm512_reduce_add_ps(residual)) * kUp + 3 * kUnit * length};
}

// Writes the groups of four channels of one row into [groups][lanes], of which the row is one lane.
inline void write_lane(const uint8_t* row, int64_t groups, int64_t lanes, uint8_t* out) {
  for (int64_t g = 0; g < groups; ++g) std::memcpy(out + g * lanes * 4, row + g * 4, 4);
}

struct CaptionBounds {
  bool quantized;  // else nothing of the caption is there
  float spread;   // largest distance of two tokens
  float error;    // largest distance of two residuals, and twice the error of a float32 score of a frame of norm 1
};

// A caption prepared for screening, in one piece of memory: bounds, float32 rows, int8 rows, offsets.
// Tokens are centred on their mean: that moves all scores of a frame alike, and leaves little to quantise when the
// tokens resemble each other. All tokens share one quantum, so that the int32 scores of a frame can be compared.
struct ScreenedCaption {
  CaptionBounds* bounds;
  float* rows;         // [tokens, stride], not centred
  uint8_t* quantized;  // tiles of [groups][tokens of the tile][4]
  int32_t* offset;     // [tokens] takes the 128 that frames are shifted by off the scores

  static constexpr int64_t kHeader = 64;
  static int64_t token_bytes(int64_t d) { return round_up(round_up(d, 16) * 5 + 4, 64); }

  ScreenedCaption(char* memory, int64_t tokens, int64_t stride)
      : bounds(reinterpret_cast<CaptionBounds*>(memory)),
        rows(reinterpret_cast<float*>(memory + kHeader)),
        quantized(reinterpret_cast<uint8_t*>(rows + tokens * stride)),
        offset(reinterpret_cast<int32_t*>(quantized + tokens * stride)) {}
};

// The mean token, in `center`; returns the bits of the largest magnitude of a centred component.
inline uint32_t center_tokens(const float* rows, int64_t count, int64_t stride, float* center) {
  __m512i largest = _mm512_setzero_si512();
  for (int64_t c = 0; c < stride; c += 16) {
    __m512 mean = _mm512_setzero_ps();
    for (int64_t l = 0; l < count; ++l) mean = _mm512_add_ps(mean, _mm512_load_ps(rows + l * stride + c));
    mean = _mm512_div_ps(mean, _mm512_set1_ps(static_cast<float>(count)));
    _mm512_store_ps(center + c, mean);
    for (int64_t l = 0; l < count; ++l)
      largest = _mm512_max_epu32(largest, magnitude_bits(_mm512_sub_ps(_mm512_load_ps(rows + l * stride + c), mean)));
  }
  return _mm512_reduce_max_epu32(largest);
}

// Upper bound on the distance of any two of the rows [count, stride]. Random rows keep sqrt(2) times their norm apart,
// not twice; many rows would take longer to compare than that saves.
inline float diameter(const float* rows, int64_t count, int64_t stride, float largest_norm) {
  if (count > kScreenPairs) return 2 * largest_norm;
  float largest = 0;
  for (int64_t l = 1; l < count; ++l)
    for (int64_t k = 0; k < l; k += 4) {
      __m512 sum[4] = {};
      for (int64_t c = 0; c < stride; c += 16)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const float* other = rows + (k + i < l ? k + i : l) * stride;
          const __m512 gap = _mm512_sub_ps(_mm512_load_ps(rows + l * stride + c), _mm512_load_ps(other + c));
          sum[i] = _mm512_fmadd_ps(gap, gap, sum[i]);
        }
      for (const __m512& square : sum) largest = __builtin_fmaxf(largest, _mm512_reduce_add_ps(square));
    }
  return __builtin_sqrtf(largest) * kUp;
}

// Between these no square overflows, no score does, and what a score loses by underflow is far below its rounding.
inline bool quantizable(float magnitude) { return magnitude > 1e-12f && magnitude < 1e15f; }

template <class T>
void quantize_caption(const T* rows, const int32_t* row_of, int64_t count, int64_t d, const Magnitudes& magnitudes,
                      char* memory) {
  const int64_t stride = round_up(d, 16), groups = (d + 3) / 4;
  const ScreenedCaption caption(memory, count, stride);
  alignas(64) float center[kScreenChannels];
  alignas(64) uint8_t row[kScreenChannels];
  *caption.bounds = {};
  if (count > kScreenMostTokens || !quantizable(magnitudes.largest)) return;
  for (int64_t l = 0; l < count; ++l) copy_row(rows + row_of[l] * d, d, stride, caption.rows + l * stride);
  const float largest = bits_float(center_tokens(caption.rows, count, stride, center));
  if (!quantizable(largest)) return;
  const float inverse_quantum = 127 / largest;
  Norms most = {};
  float centered = 0;
  const float apart = diameter(caption.rows, count, stride, FLT_MAX);
  const TokenTiles tiles = token_tiles(count);
  for (int64_t l = 0, tile = 0; l < count; ++tile) {
    const int64_t n = tile_size(tiles, tile);
    for (int64_t k = 0; k < n; ++k) {
      float* token = caption.rows + (l + k) * stride;
      most.row = __builtin_fmaxf(most.row, quantize_row(token, nullptr, inverse_quantum, stride, 0, row).row);
      const Norms norms = quantize_row(token, center, inverse_quantum, stride, 0, row, token);
      centered = __builtin_fmaxf(centered, norms.row);
      most.residual = __builtin_fmaxf(most.residual, norms.residual);
      int32_t sum = 0;
      for (int64_t c = 0; c < stride; ++c) sum += static_cast<int8_t>(row[c]);
      caption.offset[l + k] = -128 * sum;
      write_lane(row, groups, n, caption.quantized + l * groups * 4 + k * 4);
    }
    l += n;
  }
  const float roundings = static_cast<float>(stride / 16 + 8);  // of a score: see rescore
  const float residuals_apart = diameter(caption.rows, count, stride, most.residual) + 6 * kUnit * centered;
  *caption.bounds = {true, __builtin_fminf(apart * inverse_quantum * kUp, 2 * centered),
                     residuals_apart + 2 * roundings * kUnit * most.row};
  for (int64_t l = 0; l < count; ++l)  // the residuals stood there
    copy_row(rows + row_of[l] * d, d, stride, caption.rows + l * stride);
}

// A chunk of frames prepared for screening, and what screening a block of them needs.
struct ScreenScratch {
  float* rows;         // [chunk, stride]
  uint8_t* quantized;  // blocks of [groups][kBlock][4], shifted by 128
  float* residual;     // [chunk] norms of the residuals
  float* norm;         // [chunk] norms, of the frame and of the quantised frame
  int32_t* scores;      // [tokens, kBlock]
  uint32_t* candidate;  // [tokens * kBlock + 16] token * kBlock + frame
  int64_t* key;         // [tokens * kBlock + 4]
  bool* packed;         // [chunk / kBlock] whether the float32 tile kernel can have the block

  static int64_t tokens(int64_t longest_caption) { return min(longest_caption, kScreenMostTokens); }

  static int64_t bytes(int64_t chunk, int64_t longest_caption, int64_t d) {
    return round_up(chunk * (round_up(d, 16) * 5 + 9) + (tokens(longest_caption) + 1) * kBlock * 16, 64);
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
Magnitudes quantize_frames(const T* rows, const int32_t* row_of, int64_t count, int64_t d,
                           const ScreenScratch& scratch) {
  const int64_t stride = round_up(d, 16), groups = (d + 3) / 4;
  alignas(64) uint8_t row[kScreenChannels];
  uint32_t smallest = float_bits(FLT_MAX), largest = 0;
  for (int64_t r = 0; r < round_up(count, kBlock); ++r) {
    float* wide = scratch.rows + r * stride;
    uint32_t bits = 0;
    if (r < count) bits = copy_row(rows + row_of[r] * d, d, stride, wide);
    else std::memset(wide, 0, stride * sizeof(float));
    largest = bits > largest ? bits : largest;
    smallest = bits && bits < smallest ? bits : smallest;
    const float magnitude = bits_float(bits), inverse_quantum = quantizable(magnitude) ? 127 / magnitude : 0;
    const Norms norms = quantize_row(wide, nullptr, inverse_quantum, stride, 128, row);
    scratch.residual[r] = norms.residual;
    scratch.norm[r] = norms.row + norms.residual;
    write_lane(row, groups, kBlock, scratch.quantized + r / kBlock * kBlock * groups * 4 + r % kBlock * 4);
  }
  return {bits_float(largest), bits_float(smallest)};
}

// sum += frame (unsigned) * token (signed), summed over groups of four bytes. GCC 12 copies the accumulators of the
// intrinsic to and fro, which halves the speed of a loop over many of them.
inline void add_products(__m512i& sum, __m512i frame, __m512i token) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(frame), "v"(token));
}

// int32 scores of V vectors of frames [groups][kBlock][4] against K tokens [groups][K][4].
template <int V, int K>
void approximate_tile(const uint8_t* frames, const uint8_t* tokens, const int32_t* offset, int64_t groups,
                      int32_t* scores, __m512i* best) {
  __m512i score[K][V];
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) score[k][v] = _mm512_set1_epi32(offset[k]);
  for (int64_t g = 0; g < groups; ++g, frames += kBlock * 4, tokens += K * 4) {
    __m512i frame[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) frame[v] = _mm512_loadu_si512(frames + v * 64);
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) {
      int32_t token;
      std::memcpy(&token, tokens + k * 4, 4);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) add_products(score[k][v], frame[v], _mm512_set1_epi32(token));
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      _mm512_storeu_si512(scores + k * kBlock + v * 16, score[k][v]);
      best[v] = _mm512_max_epi32(best[v], score[k][v]);
    }
}

using ApproximateTile = void (*)(const uint8_t*, const uint8_t*, const int32_t*, int64_t, int32_t*, __m512i*);

template <int V, class Tokens>
struct ApproximateTiles;
template <int V, int... K>
struct ApproximateTiles<V, std::integer_sequence<int, K...>> {
  static constexpr ApproximateTile tile[] = {approximate_tile<V, K + 1>...};
};

}  // namespace
}  // namespace atk
