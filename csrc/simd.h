// Vectors for one instruction set, through the vector extension that GCC and Clang share.
// The including file sets ATK_LANES (floats in a vector), ATK_TILE_VECTORS and ATK_TILE_TOKENS (the register tile).
// Everything that is compiled per instruction set lives in unnamed namespaces and calls no inline function of the
// standard library, which the linker could otherwise share with the code for a lesser CPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"
#include "max_mean.h"

namespace atk {
namespace {

constexpr int kLanes = ATK_LANES;
constexpr int kTileVectors = ATK_TILE_VECTORS;
constexpr int kTileTokens = ATK_TILE_TOKENS;
constexpr int kBlock = kLanes * kTileVectors;

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
#pragma GCC unroll 1  // a loop is turned into vector conversions, its unrolled body is not
  for (int k = 0; k < kLanes; ++k) x[k] = widen(p[k]);
  return load(x);
}

inline void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
struct Type {
  using type = T;
};

// Calls body(Type<T>{}) with the C++ type of a dtype or of an index.
template <class Body>
inline void with_dtype(Dtype dtype, const Body& body) {
  if (dtype == Dtype::float32) return body(Type<float>{});
  if (dtype == Dtype::bfloat16) return body(Type<BFloat16>{});
  return body(Type<Float16>{});
}

template <class Body>
inline void with_index(int bytes, const Body& body) {
  if (bytes == 1) return body(Type<uint8_t>{});
  if (bytes == 2) return body(Type<int16_t>{});
  return body(Type<int32_t>{});
}

// Winners of one caption from one frame on; null if they are not wanted.
template <class Index>
inline Index* winners_of(const MaxMean& op, const Winners& winners, int64_t caption, int64_t frame) {
  if (!winners.index) return nullptr;
  const int64_t row = op.pairs ? 0 : caption - winners.first_caption;
  return static_cast<Index*>(winners.index) + row * op.audio.total + frame;
}

}  // namespace
}  // namespace atk
