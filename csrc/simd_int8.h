// The operations of screening that the vector extension cannot express: int8 products and what follows from them.
// One version each for AVX-512 with VNNI, AVX2 with AVX-VNNI, and NEON with dot products, chosen by the vector's width.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

#include "simd.h"

namespace atk {
namespace {

typedef float FourFloats __attribute__((vector_size(4 * sizeof(float))));

#if defined(__x86_64__)
constexpr uint8_t kFrameZeroPoint = 128;  // added to the int8 frames: vpdpbusd wants one unsigned operand
#else
constexpr uint8_t kFrameZeroPoint = 0;
#endif

// add_products: sum += frame * token, summed over the 4 bytes of each lane. The frame's bytes are unsigned if they have
// a zero point. In assembly on x86, because GCC 12 copies the accumulators of the intrinsic back and forth, which
// halves the speed of a loop over many of them.
//
// store_low_bytes: the low byte of every lane. GCC 12 would convert the vector lane by lane.
//
// not_below: bit k is set if score[k] >= threshold[k].
//
// append_bits: appends first + k to `out` for every bit k that is set, in order, and returns the end. May write up to
// 16 elements beyond it.
//
// sum_lanes: the sums of four vectors. Every sum has the same order of additions.
#if defined(__x86_64__) && ATK_LANES == 16

inline void add_products(IntVec& sum, IntVec frame, IntVec token) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(frame), "v"(token));
}

inline IntVec maximum(IntVec a, IntVec b) {
  return reinterpret_cast<IntVec>(_mm512_max_epi32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}

inline void store_low_bytes(uint8_t* out, IntVec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(x)));
}

inline uint64_t not_below(IntVec score, IntVec threshold) {
  return _mm512_cmpge_epi32_mask(reinterpret_cast<__m512i>(score), reinterpret_cast<__m512i>(threshold));
}

inline uint32_t* append_bits(uint64_t bits, uint32_t first, uint32_t* out) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
  for (int k = 0; k < 64; k += kLanes) {
    const __mmask16 part = static_cast<__mmask16>(bits >> k);
    const __m512i code = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int32_t>(first + k)));
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(part, code));
    out += __builtin_popcount(part);
  }
  return out;
}

inline FourFloats sum_lanes(const Vec (&x)[4]) {
  const __m512 even = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const __m512 odd = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  const __m512 quarter = _mm512_add_ps(_mm512_shuffle_ps(even, odd, 0x44), _mm512_shuffle_ps(even, odd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(quarter), _mm512_extractf32x8_ps(quarter, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

#elif defined(__x86_64__)

inline void add_products(IntVec& sum, IntVec frame, IntVec token) {
#if defined(ATK_EVEX_VNNI)  // for tests: the encoding of AVX-512 VL, which runs where AVX-VNNI is missing
  asm("%{evex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(frame), "x"(token));
#else
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(frame), "x"(token));
#endif
}

inline IntVec maximum(IntVec a, IntVec b) {
  return reinterpret_cast<IntVec>(_mm256_max_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}

inline void store_low_bytes(uint8_t* out, IntVec x) {
  const __m256i low = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(x), _mm256_set1_epi32(0x0c080400));
  const __m128i halves = _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), halves);
}

inline uint64_t not_below(IntVec score, IntVec threshold) {
  return static_cast<uint64_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(score >= threshold)));
}

inline FourFloats sum_lanes(const Vec (&x)[4]) {
  const __m256 quarter = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  return _mm_add_ps(_mm256_castps256_ps128(quarter), _mm256_extractf128_ps(quarter, 1));
}

#else

inline void add_products(IntVec& sum, IntVec frame, IntVec token) {
  sum = reinterpret_cast<IntVec>(vdotq_s32(reinterpret_cast<int32x4_t>(sum), reinterpret_cast<int8x16_t>(frame),
                                           reinterpret_cast<int8x16_t>(token)));
}

inline IntVec maximum(IntVec a, IntVec b) {
  return reinterpret_cast<IntVec>(vmaxq_s32(reinterpret_cast<int32x4_t>(a), reinterpret_cast<int32x4_t>(b)));
}

inline void store_low_bytes(uint8_t* out, IntVec x) {
  const int16x4_t halves = vmovn_s32(reinterpret_cast<int32x4_t>(x));
  const int8x8_t bytes = vmovn_s16(vcombine_s16(halves, halves));
  std::memcpy(out, &bytes, kLanes);
}

inline uint64_t not_below(IntVec score, IntVec threshold) {
  const IntVec bits = (score >= threshold) & IntVec{1, 2, 4, 8};
  return static_cast<uint64_t>(vaddvq_s32(reinterpret_cast<int32x4_t>(bits)));
}

inline FourFloats sum_lanes(const Vec (&x)[4]) {
  const auto pairs = [](Vec a, Vec b) {
    return vpaddq_f32(reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b));
  };
  return reinterpret_cast<FourFloats>(vpaddq_f32(pairs(x[0], x[1]), pairs(x[2], x[3])));
}

#endif

#if ATK_LANES < 16
inline uint32_t* append_bits(uint64_t bits, uint32_t first, uint32_t* out) {
  for (; bits; bits &= bits - 1) *out++ = first + static_cast<uint32_t>(__builtin_ctzll(bits));
  return out;
}
#endif

}  // namespace
}  // namespace atk
