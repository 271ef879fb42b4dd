// Rows packed for the register tiles of the forward, and the magnitudes of their components.
//
// A packed tile is [words][rows]: the rows are interleaved, so that a vector load reads one word of kLanes rows.
#pragma once

#include <cfloat>

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

// Packs rows[source_row[r]], r < count, as [words][lanes]; lanes from `count` on are zero.
template <class T>
void pack_rows(const T* rows, const int32_t* source_row, int64_t count, int64_t D, int64_t lanes, float* packed) {
  constexpr int64_t kStep = 64;  // words at a time, so that the strided writes stay in the L1 cache
  float words[kStep];
  for (int64_t c = 0; c < D; c += kStep * kPerWord<T>, packed += kStep * lanes) {
    const int64_t channels = min(kStep * kPerWord<T>, D - c);
    const int64_t word_count = words_per_row<T>(channels);
    for (int64_t r = 0; r < count; ++r) {
      read_words(rows + source_row[r] * D + c, channels, words);
      for (int64_t k = 0; k < word_count; ++k) packed[k * lanes + r] = words[k];
    }
    for (int64_t k = 0; k < word_count; ++k)
      for (int64_t r = count; r < lanes; ++r) packed[k * lanes + r] = 0;
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
