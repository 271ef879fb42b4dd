// Rows of unit length, and their gradient, with norms and products in float32.
#pragma once

#include "simd.h"

namespace atk {
namespace {

constexpr float kSmallestNorm = 1e-12f;  // a shorter row counts as zero

template <class T>
inline float dot(const T* a, const T* b, int64_t d) {
  Vec sums[4] = {};
  int64_t c = 0;
  for (; c + 4 * kLanes <= d; c += 4 * kLanes)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) sums[k] += load(a + c + k * kLanes) * load(b + c + k * kLanes);
  float total = 0;
  const Vec sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (int k = 0; k < kLanes; ++k) total += sum[k];
  for (; c < d; ++c) total += widen(a[c]) * widen(b[c]);
  return total;
}

template <class T>
void normalize_typed(const T* rows, const bool* mask, int64_t begin, int64_t end, int64_t d, T* unit,
                     float* inverse_norm) {
  for (int64_t r = begin; r < end; ++r) {
    const T* row = rows + r * d;
    T* out = unit + r * d;
    inverse_norm[r] = 0;
    std::memset(out, 0, d * sizeof(T));
    if (mask && !mask[r]) continue;
    const float norm = __builtin_sqrtf(dot(row, row, d));
    if (norm < kSmallestNorm) continue;
    const float inverse = inverse_norm[r] = 1 / norm;
    for (int64_t c = 0; c < d; ++c) narrow(widen(row[c]) * inverse, out + c);
  }
}

void normalize(const void* rows, Dtype dtype, const bool* mask, int64_t begin, int64_t end, int64_t d, void* unit,
               float* inverse_norm) {
  with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    normalize_typed(static_cast<const T*>(rows), mask, begin, end, d, static_cast<T*>(unit), inverse_norm);
  });
}

template <class T>
void normalize_grad_typed(const T* grad, const T* unit, const float* inverse_norm, int64_t begin, int64_t end,
                          int64_t d, T* grad_rows) {
  for (int64_t r = begin; r < end; ++r) {
    const T *g = grad + r * d, *u = unit + r * d;
    T* out = grad_rows + r * d;
    const float inverse = inverse_norm[r];
    if (inverse == 0) {
      std::memset(out, 0, d * sizeof(T));
      continue;
    }
    const float along = dot(g, u, d);
    for (int64_t c = 0; c < d; ++c) narrow(inverse * (widen(g[c]) - along * widen(u[c])), out + c);
  }
}

void normalize_grad(const void* grad, const void* unit, Dtype dtype, const float* inverse_norm, int64_t begin,
                    int64_t end, int64_t d, void* grad_rows) {
  with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    normalize_grad_typed(static_cast<const T*>(grad), static_cast<const T*>(unit), inverse_norm, begin, end, d,
                         static_cast<T*>(grad_rows));
  });
}

}  // namespace
}  // namespace atk
