// Rows packed for the register tiles of the forward, and how large their components are.
#pragma once

#include <cfloat>

#include "simd.h"

namespace atk {
namespace {

// A caption's tokens are cut into the fewest tiles of at most kTileTokens, as equal as possible.
struct TokenTiles {
  int64_t base, larger;  // `larger` tiles of base + 1 tokens come first
};

inline TokenTiles token_tiles(int64_t tokens) {
  const int64_t tiles = (tokens + kTileTokens - 1) / kTileTokens;
  return {tokens / tiles, tokens % tiles};
}

inline int64_t tile_size(const TokenTiles& tiles, int64_t tile) { return tiles.base + (tile < tiles.larger); }

// A packed row consists of 32-bit words: one channel in float32, or two channels in bfloat16 (the last may be a zero).
#if defined(__AVX512BF16__)
constexpr int64_t kBfloat16PerWord = 2;
#else
constexpr int64_t kBfloat16PerWord = 1;
#endif
template <class T>
constexpr int64_t kPerWord = 1;
template <>
constexpr int64_t kPerWord<BFloat16> = kBfloat16PerWord;

template <class T>
inline void read_words(const T* row, int64_t channels, float* words) {
  if constexpr (kPerWord<T> == 1) {
    for (int64_t c = 0; c < channels; ++c) words[c] = widen(row[c]);
  } else {
    words[(channels - 1) / 2] = 0;
    std::memcpy(words, row, channels * sizeof *row);
  }
}

// Packs rows[row[r]], r < count, as [words][lanes].
template <class T>
void pack_rows(const T* rows, const int32_t* row, int64_t count, int64_t d, int64_t lanes, float* packed) {
  constexpr int64_t kStep = 64;  // words at a time, so that the strided writes stay in the first-level cache
  float words[kStep];
  for (int64_t c = 0; c < d; c += kStep * kPerWord<T>, packed += kStep * lanes) {
    const int64_t channels = min(kStep * kPerWord<T>, d - c), n = (channels + kPerWord<T> - 1) / kPerWord<T>;
    for (int64_t r = 0; r < count; ++r) {
      read_words(rows + row[r] * d + c, channels, words);
      for (int64_t k = 0; k < n; ++k) packed[k * lanes + r] = words[k];
    }
    for (int64_t k = 0; k < n; ++k)
      for (int64_t r = count; r < lanes; ++r) packed[k * lanes + r] = 0;
  }
}

// Magnitudes are compared as bits: integers order finite < inf < NaN.
template <class T>
Magnitudes magnitudes(const T* rows, const int32_t* row, int64_t count, int64_t d) {
  uint32_t largest = 0, smallest_row = float_bits(FLT_MAX);
  for (int64_t r = 0; r < count; ++r) {
    const T* channels = rows + row[r] * d;
    uint32_t magnitude = 0;
    for (int64_t c = 0; c < d; ++c) {
      const uint32_t bits = float_bits(widen(channels[c])) & 0x7fffffff;
      magnitude = bits > magnitude ? bits : magnitude;
    }
    largest = magnitude > largest ? magnitude : largest;
    smallest_row = magnitude && magnitude < smallest_row ? magnitude : smallest_row;
  }
  return {bits_float(largest), bits_float(smallest_row)};
}

Magnitudes pack_caption(const MaxMean& op, const ValidRows& tokens, int64_t caption, float* packed) {
  const int32_t* row = tokens.row + tokens.first[caption];
  const int64_t count = tokens.first[caption + 1] - tokens.first[caption];
  Magnitudes result = {};
  with_dtype(op.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* rows = static_cast<const T*>(op.text.rows);
    const int64_t words = (op.d + kPerWord<T> - 1) / kPerWord<T>;
    result = magnitudes(rows, row, count, op.d);
    for (int64_t l = 0, tile = 0; l < count; ++tile) {
      const TokenTiles tiles = token_tiles(count);
      const int64_t n = tile_size(tiles, tile);
      pack_rows(rows, row + l, n, op.d, n, packed + l * words);
      l += n;
    }
  });
  return result;
}

}  // namespace
}  // namespace atk
