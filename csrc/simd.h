// Vectors of one instruction set, written with the vector extension of GCC and Clang.
// The including file defines ATK_LANES (floats in a vector), ATK_TILE_VECTORS and ATK_TILE_TOKENS for the register
// tile, and ATK_BFLOAT16_DOT as 1 if an instruction multiplies pairs of bfloat16 channels.
// All code compiled per instruction set is in unnamed namespaces and calls no inline function of the standard library:
// the linker could otherwise run a copy compiled for a newer CPU on an older one.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"
#include "max_mean.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if !defined(ATK_BFLOAT16_DOT)
#define ATK_BFLOAT16_DOT 0
#endif

namespace atk {
namespace {

constexpr int kLanes = ATK_LANES;
constexpr int kTileVectors = ATK_TILE_VECTORS;
constexpr int kTileTokens = ATK_TILE_TOKENS;
constexpr int kBlock = kLanes * kTileVectors;  // frames in a register tile

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(int32_t))));

inline Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

template <class T>
inline Vec load(const T* p) {
  float x[kLanes];
#pragma GCC unroll 1  // GCC vectorizes the conversions of a loop, but not those of an unrolled body
  for (int k = 0; k < kLanes; ++k) x[k] = widen(p[k]);
  return load(x);
}

#if defined(__AVX512F__) && ATK_LANES == 16
inline Vec load(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
#endif

inline void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }

template <class T, int N>
struct Lanes {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

// Combines the halves of N lanes until one lane is left.
template <class T, int N, class Combine>
inline T combine_lanes(const typename Lanes<T, N>::type& x, const Combine& combine) {
  if constexpr (N == 2) {
    return combine(x[0], x[1]);
  } else {
    typename Lanes<T, N / 2>::type half[2];
    std::memcpy(half, &x, sizeof half);
    return combine_lanes<T, N / 2>(combine(half[0], half[1]), combine);
  }
}

inline float sum_of_lanes(Vec x) {
  return combine_lanes<float, kLanes>(x, [](auto a, auto b) { return a + b; });
}

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T>
struct Type {
  using type = T;
};

// Calls body(Type<T>{}) with the C++ type T of a dtype (with_dtype) or of a winner index (with_index).
template <class Body>
inline void with_dtype(Dtype dtype, const Body& body) {
  if (dtype == Dtype::float32) return body(Type<float>{});
  if (dtype == Dtype::bfloat16) return body(Type<BFloat16>{});
  return body(Type<Float16>{});
}

template <class Body>
inline void with_index(int index_bytes, const Body& body) {
  if (index_bytes == 1) return body(Type<uint8_t>{});
  if (index_bytes == 2) return body(Type<int16_t>{});
  return body(Type<int32_t>{});
}

// The winner indices of one caption, starting at one frame; null if they are not wanted.
template <class Index>
inline Index* winner_indices(const MaxMean& op, const Winners& winners, int64_t caption, int64_t frame) {
  if (!winners.index) return nullptr;
  const int64_t row = op.pairs ? 0 : caption - winners.first_caption;
  return static_cast<Index*>(winners.index) + row * op.audio.num_rows + frame;
}

}  // namespace
}  // namespace atk
