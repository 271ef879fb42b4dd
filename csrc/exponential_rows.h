// Kernels of exponentials.h for a block of rows.
#pragma once

#include "exponentials.h"
#include "simd.h"

namespace atk {
namespace {

constexpr int64_t kStrip = 1024;  // columns whose sums stay in the first-level cache
constexpr float kTiniest = -87;   // exponents below it give 0

inline Vec broadcast(float x) { return x - Vec{}; }

// e^x to about one unit in the last place, for x <= 88 and NaN.
inline Vec exponential(Vec x) {
  constexpr float log2_e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  constexpr float rounder = 12582912;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Vec rounded = x * log2_e + rounder;
  const Vec n = rounded - rounder;
  const Vec r = (x - n * ln2_high) - n * ln2_low;  // |r| <= ln(2) / 2
  Vec y = r * 1.9875691500e-4f + 1.3981999507e-3f;  // minimax polynomial of the Cephes library
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1;
  IntVec power, bits;
  std::memcpy(&power, &rounded, sizeof power);
  std::memcpy(&bits, &y, sizeof bits);
  power = (power << 23) & (x == x);  // the bits of the rounder are shifted out; those of a NaN would change its sign
  bits = (bits + power) & ~(x < kTiniest);  // times 2^n
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// The first `count` elements, then `padding`.
inline Vec load_first(const float* p, int64_t count, float padding) {
  if (count == kLanes) return load(p);
  float x[kLanes];
  for (float& lane : x) lane = padding;
  std::memcpy(x, p, count * sizeof *p);
  return load(x);
}

void add_exponentials(const Logits& logits, int64_t begin, int64_t end, float* row_sums, float* column_sums) {
  for (int64_t strip = 0; strip < logits.columns; strip += kStrip) {
    const int64_t columns = min(kStrip, logits.columns - strip);
    for (int64_t i = begin; i < end; ++i) {
      const float* row = logits.values + i * logits.stride + strip;
      float* sums = column_sums ? column_sums + strip : nullptr;
      Vec total[2] = {};
      int64_t j = 0;
      const auto add = [&](int k) {
        const Vec y = exponential(load(row + j + k * kLanes) - logits.shift);
        total[k] += y;
        if (sums) store(sums + j + k * kLanes, load(sums + j + k * kLanes) + y);
      };
      for (; j + 2 * kLanes <= columns; j += 2 * kLanes) {
        add(0);
        add(1);
      }
      for (; j < columns; j += kLanes) {
        const int64_t count = min(kLanes, columns - j);
        const Vec y = exponential(load_first(row + j, count, -__builtin_inff()) - logits.shift);
        total[0] += y;
        for (int64_t k = 0; sums && k < count; ++k) sums[j + k] += y[k];
      }
      row_sums[i] += sum_of_lanes(total[0] + total[1]);
    }
  }
}

// Writes the gradients of `columns` logits of one row, with the factors of these columns, to `out`. Returns the sum of
// the products of logits and gradients.
inline float row_gradients(const float* row, float shift, float row_factor, const float* column_factors,
                           int64_t columns, float* out) {
  Vec products = {};
  const auto gradient = [&](int64_t j, int64_t count) {
    const Vec x = load_first(row + j, count, 0);
    Vec factor = broadcast(row_factor);
    if (column_factors) factor += load_first(column_factors + j, count, 0);
    const Vec y = exponential(x - shift) * factor;
    products += x * y;
    return y;
  };
  int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) store(out + j, gradient(j, kLanes));
  if (j < columns) {
    const Vec y = gradient(j, columns - j);
    std::memcpy(out + j, &y, (columns - j) * sizeof *out);
  }
  return sum_of_lanes(products);
}

template <class T>
double logit_gradients_typed(const Logits& logits, const GradientParts& gradients, int64_t begin, int64_t end, T* out,
                             int64_t out_stride) {
  double sum = 0;
  float strip[kStrip];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t pair = gradients.pair_columns ? gradients.pair_columns[i] : -1;
    for (int64_t first = 0; first < logits.columns; first += kStrip) {
      const int64_t columns = min(kStrip, logits.columns - first);
      const float* row = logits.values + i * logits.stride + first;
      const float* factors = gradients.column_factors ? gradients.column_factors + first : nullptr;
      sum += row_gradients(row, logits.shift, gradients.row_factors[i], factors, columns, strip);
      if (first <= pair && pair < first + columns) {
        const int64_t j = pair - first;
        sum += static_cast<double>(row[j]) * (gradients.pair_gradients[i] - strip[j]);
        strip[j] = gradients.pair_gradients[i];
      }
      T* to = out + i * out_stride + first;
      for (int64_t j = 0; j < columns; ++j) narrow(strip[j], to + j);
    }
  }
  return sum;
}

double logit_gradients(const Logits& logits, const GradientParts& gradients, int64_t begin, int64_t end, void* out,
                       Dtype out_dtype, int64_t out_stride) {
  double sum = 0;
  with_dtype(out_dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    sum = logit_gradients_typed(logits, gradients, begin, end, static_cast<T*>(out), out_stride);
  });
  return sum;
}

}  // namespace
}  // namespace atk
