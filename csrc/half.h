// Conversions between float32 and the 16-bit types: exact when widening, round-to-nearest-even when narrowing.
// `static`: each instruction set keeps its own copies, so the linker cannot give AVX-512 code to an older CPU.
#pragma once

#include <cstdint>
#include <cstring>

namespace atk {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

constexpr uint32_t kMagnitudeMask = 0x7fffffff;  // of float32 bits: all but the sign
constexpr uint32_t kInfinityBits = 0x7f800000;   // larger magnitudes are NaN
constexpr uint32_t kHighHalf = 0xffff0000;       // of a word of two bfloat16 channels: the second

static inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

static inline float widen(float x) { return x; }

static inline float widen(BFloat16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }

static inline float widen(Float16 x) {
  constexpr uint32_t rebias = (127 - 15) << 23;
  constexpr uint32_t top_exponent = 0x1fu << 23;
  constexpr uint32_t implicit_one = 1u << 23;
  const uint32_t shifted = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  const uint32_t exponent = shifted & top_exponent;
  const uint32_t normal = shifted + rebias + (exponent == top_exponent ? rebias : 0);
  // A subnormal is read with an implicit leading one, which is subtracted again: no float32 subnormal ever occurs.
  const float subnormal = bits_float(shifted + rebias + implicit_one) - bits_float(rebias + implicit_one);
  const uint32_t magnitude = exponent == 0 ? float_bits(subnormal) : normal;
  return bits_float(magnitude | static_cast<uint32_t>(x.bits & 0x8000) << 16);
}

static inline void narrow(float x, float* out) { *out = x; }

static inline void narrow(float x, BFloat16* out) {
  constexpr uint32_t quiet_nan = 0x7fc0;
  const uint32_t bits = float_bits(x);
  const bool nan = (bits & kMagnitudeMask) > kInfinityBits;
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  out->bits = static_cast<uint16_t>(nan ? quiet_nan : rounded);
}

static inline void narrow(float x, Float16* out) {
  constexpr uint32_t rebias = (127 - 15) << 23;
  constexpr uint32_t smallest_normal = rebias + (1u << 23);
  constexpr uint32_t overflow = (127 + 16) << 23;
  constexpr uint32_t quiet_nan = 0x7e00;
  constexpr uint32_t infinity = 0x7c00;
  const uint32_t sign = float_bits(x) >> 16 & 0x8000;
  const uint32_t magnitude = float_bits(x) & kMagnitudeMask;
  const uint32_t normal = (magnitude - rebias + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Floats from 0.5 up are spaced like float16 subnormals: adding 0.5 rounds the value into the low bits.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
  const uint32_t special = magnitude > kInfinityBits ? quiet_nan : infinity;
  out->bits = static_cast<uint16_t>(
      sign | (magnitude >= overflow ? special : magnitude < smallest_normal ? subnormal : normal));
}

}  // namespace atk
