// Kernels of the row normalization (normalize.h), with norms and products in float32:
//
//   unit = row * inverse        grad_row = inverse * (grad - <grad, unit> unit),   inverse = 1 / ||row||
#pragma once

#include "simd.h"

namespace atk {
namespace {

constexpr float kSmallestNorm = 1e-12f;  // shorter rows count as zero
constexpr int kDotChains = 4;            // independent sums, which hide the latency of a multiply-add

template <class T>
inline float dot(const T* a, const T* b, int64_t D) {
  Vec sums[kDotChains] = {};
  int64_t c = 0;
  for (; c + kDotChains * kLanes <= D; c += kDotChains * kLanes)
#pragma GCC unroll 4
    for (int k = 0; k < kDotChains; ++k) sums[k] += load(a + c + k * kLanes) * load(b + c + k * kLanes);
  float total = sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; c < D; ++c) total += widen(a[c]) * widen(b[c]);
  return total;
}

template <class T>
void normalize_typed(const T* rows, const bool* mask, int64_t begin, int64_t end, int64_t D, T* unit,
                     float* inverse_norm) {
  for (int64_t r = begin; r < end; ++r) {
    const T* row = rows + r * D;
    T* out = unit + r * D;
    inverse_norm[r] = 0;
    std::memset(out, 0, D * sizeof(T));
    if (mask && !mask[r]) continue;
    const float norm = __builtin_sqrtf(dot(row, row, D));
    if (norm < kSmallestNorm) continue;
    const float inverse = inverse_norm[r] = 1 / norm;
    for (int64_t c = 0; c < D; ++c) narrow(widen(row[c]) * inverse, out + c);
  }
}

void normalize(const void* rows, Dtype dtype, const bool* mask, int64_t begin, int64_t end, int64_t D, void* unit,
               float* inverse_norm) {
  with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    normalize_typed(static_cast<const T*>(rows), mask, begin, end, D, static_cast<T*>(unit), inverse_norm);
  });
}

template <class T>
void normalize_grad_typed(const T* grad, const T* unit, const float* inverse_norm, int64_t begin, int64_t end,
                          int64_t D, T* grad_rows) {
  for (int64_t r = begin; r < end; ++r) {
    const T *g = grad + r * D, *u = unit + r * D;
    T* out = grad_rows + r * D;
    const float inverse = inverse_norm[r];
    if (inverse == 0) {
      std::memset(out, 0, D * sizeof(T));
      continue;
    }
    const float grad_along_unit = dot(g, u, D);
    for (int64_t c = 0; c < D; ++c) narrow(inverse * (widen(g[c]) - grad_along_unit * widen(u[c])), out + c);
  }
}

void normalize_grad(const void* grad, const void* unit, Dtype dtype, const float* inverse_norm, int64_t begin,
                    int64_t end, int64_t D, void* grad_rows) {
  with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    normalize_grad_typed(static_cast<const T*>(grad), static_cast<const T*>(unit), inverse_norm, begin, end, D,
                         static_cast<T*>(grad_rows));
  });
}

}  // namespace
}  // namespace atk
