// Rows packed for the register tiles of the forward, and the magnitudes of their components.
//
// A packed tile is [words][rows]: the rows are interleaved, so that a vector load reads one word of kLanes rows.
#pragma once

#include <cfloat>
#include <utility>

#include "simd.h"

namespace atk {
namespace {

// The tokens of a caption are cut into as few tiles of at most kTileTokens as possible, of nearly equal sizes.
struct TokenTiles {
  int64_t base;    // tokens in a tile
  int64_t larger;  // this many tiles come first and have base + 1 tokens
};

inline TokenTiles token_tiles(int64_t tokens) {
  const int64_t tiles = (tokens + kTileTokens - 1) / kTileTokens;
  return {tokens / tiles, tokens % tiles};
}

inline int64_t tile_size(const TokenTiles& tiles, int64_t tile) { return tiles.base + (tile < tiles.larger); }

// A packed row consists of 32-bit words, each of one channel or of two bfloat16 channels (zero-padded if D is odd).
constexpr int64_t kBfloat16PerWord = ATK_BFLOAT16_DOT ? 2 : 1;
template <class T>
constexpr int64_t kPerWord = 1;
template <>
constexpr int64_t kPerWord<BFloat16> = kBfloat16PerWord;

template <class T>
inline int64_t words_per_row(int64_t D) {
  return (D + kPerWord<T> - 1) / kPerWord<T>;
}

template <class T>
inline void read_words(const T* row, int64_t channels, float* words) {
  if constexpr (kPerWord<T> == 1) {
    for (int64_t c = 0; c < channels; ++c) words[c] = widen(row[c]);
  } else {
    words[(channels - 1) / 2] = 0;
    std::memcpy(words, row, channels * sizeof *row);
  }
}

// Lane L of the result is a[L] and b[L - Step] (Half 0) or a[L + Step] and b[L] (Half 1), by turns of Step lanes.
template <int Step, int Half, int... L>
inline Vec exchange(Vec a, Vec b, std::integer_sequence<int, L...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (Half * Step + L + (L & Step ? kLanes - Step : 0))...);
#else
  return __builtin_shuffle(a, b, IntVec{(Half * Step + L + (L & Step ? kLanes - Step : 0))...});
#endif
}

// Transposes kLanes vectors.
template <int Step = 1>
inline void transpose(Vec (&x)[kLanes]) {
  if constexpr (Step < kLanes) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & Step) continue;
      const Vec a = x[i], b = x[i + Step];
      x[i] = exchange<Step, 0>(a, b, lanes);
      x[i + Step] = exchange<Step, 1>(a, b, lanes);
    }
    transpose<2 * Step>(x);
  }
}

// The kLanes words from `word` on; zeros beyond the row.
template <class T>
inline Vec words_at(const T* row, int64_t D, int64_t word) {
  const int64_t channel = word * kPerWord<T>;
  if (channel + kLanes * kPerWord<T> <= D) {
    if constexpr (kPerWord<T> == 1) return load(row + channel);
    Vec words;
    std::memcpy(&words, row + channel, sizeof words);
    return words;
  }
  float words[kLanes] = {};
  read_words(row + channel, D - channel, words);
  return load(words);
}

// Packs rows[source_row[r]], r < count, as [words][lanes]; lanes from `count` on are zero.
template <class T>
void pack_rows(const T* rows, const int32_t* source_row, int64_t count, int64_t D, int64_t lanes, float* packed) {
  const int64_t words = words_per_row<T>(D);
  for (int64_t r = 0; r < lanes; r += kLanes) {
    const int64_t width = min(kLanes, lanes - r);
    for (int64_t k = 0; k < words; k += kLanes) {
      Vec x[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        x[i] = r + i < count ? words_at(rows + source_row[r + i] * D, D, k) : Vec{};
      transpose(x);
      const int64_t rest = min(kLanes, words - k);
      float* out = packed + k * lanes + r;
      // A vector that is wider than the lanes runs into the next words, which are written after it.
      const int64_t beyond = (kLanes + lanes - 1) / lanes - 1;
      const int64_t whole = width == kLanes ? rest : r == 0 ? min(rest, words - beyond - k) : 0;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        if (i < whole)
          store(out + i * lanes, x[i]);
        else if (i < rest)
          std::memcpy(out + i * lanes, &x[i], width * sizeof(float));
      }
    }
  }
}

// Compares magnitudes by their bits, because as integers finite < infinity < NaN.
template <class T>
Magnitudes magnitudes(const T* rows, const int32_t* source_row, int64_t count, int64_t D) {
  uint32_t largest = 0;
  uint32_t smallest_row_max = float_bits(FLT_MAX);
  for (int64_t r = 0; r < count; ++r) {
    const T* row = rows + source_row[r] * D;
    uint32_t row_max = 0;
    for (int64_t c = 0; c < D; ++c) {
      const uint32_t bits = float_bits(widen(row[c])) & kMagnitudeMask;
      row_max = bits > row_max ? bits : row_max;
    }
    largest = row_max > largest ? row_max : largest;
    smallest_row_max = row_max && row_max < smallest_row_max ? row_max : smallest_row_max;
  }
  return {bits_float(largest), bits_float(smallest_row_max)};
}

Magnitudes pack_caption(const MaxMean& op, const ValidRows& tokens, int64_t caption, float* packed) {
  const int32_t* source_row = tokens.source_row + tokens.offset[caption];
  const int64_t count = tokens.offset[caption + 1] - tokens.offset[caption];
  Magnitudes result = {};
  with_dtype(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* rows = static_cast<const T*>(op.text.rows);
    const int64_t words = words_per_row<T>(op.D);
    result = magnitudes(rows, source_row, count, op.D);
    for (int64_t l = 0, tile = 0; l < count; ++tile) {
      const TokenTiles tiles = token_tiles(count);
      const int64_t tile_tokens = tile_size(tiles, tile);
      pack_rows(rows, source_row + l, tile_tokens, op.D, tile_tokens, packed + l * words);
      l += tile_tokens;
    }
  });
  return result;
}

}  // namespace
}  // namespace atk
