// Rows cut into spans of kSpan channels for the backward, packed as [spans][rows][kSpan] and padded with zeros.
#pragma once

#include "simd.h"

namespace atk {
namespace {

constexpr int kSpanVectors = kSpan / kLanes;

// A span in registers.
struct SpanVectors {
  Vec part[kSpanVectors];
};

// A span of float32 channels.
struct WideSpan {
  float channel[kSpan];
};

// A span of bfloat16 channels. It takes half the cache of a WideSpan, and one operation per vector widens it. Word c
// holds channel c in its low half and channel c + kSpan / 2 in its high half.
struct PairedSpan {
  uint32_t word[kSpan / 2];
};

inline SpanVectors load(const WideSpan& span) {
  SpanVectors x;
  for (int v = 0; v < kSpanVectors; ++v) x.part[v] = load(span.channel + v * kLanes);
  return x;
}

inline SpanVectors load(const PairedSpan& span) {
  SpanVectors x;
  for (int v = 0; v < kSpanVectors / 2; ++v) {
    IntVec words;
    std::memcpy(&words, span.word + v * kLanes, sizeof words);
    x.part[v] = reinterpret_cast<Vec>(words << 16);
    x.part[v + kSpanVectors / 2] = reinterpret_cast<Vec>(words & static_cast<int32_t>(kHighHalf));
  }
  return x;
}

inline void store(WideSpan* span, const SpanVectors& x) {
  for (int v = 0; v < kSpanVectors; ++v) store(span->channel + v * kLanes, x.part[v]);
}

inline SpanVectors multiply_add(SpanVectors sum, const SpanVectors& row, float weight) {
  for (int v = 0; v < kSpanVectors; ++v) sum.part[v] += row.part[v] * weight;
  return sum;
}

// Packs a span of up to kSpan channels, padded with zeros.
template <class T>
inline void pack_span(const T* row, int64_t channels, WideSpan* out) {
  float padded[kSpan] = {};
  if (channels == kSpan) {
    for (int v = 0; v < kSpanVectors; ++v) store(out->channel + v * kLanes, load(row + v * kLanes));
  } else {
    for (int64_t c = 0; c < channels; ++c) padded[c] = widen(row[c]);
    std::memcpy(out, padded, sizeof padded);
  }
}

inline void pack_span(const BFloat16* row, int64_t channels, PairedSpan* out) {
  uint16_t bits[kSpan] = {};
  std::memcpy(bits, row, channels * sizeof *row);
  for (int64_t c = 0; c < kSpan / 2; ++c) out->word[c] = bits[c] | static_cast<uint32_t>(bits[c + kSpan / 2]) << 16;
}

template <class T>
inline void narrow_channels(const float* row, int64_t channels, T* out) {
  for (int64_t c = 0; c < channels; ++c) narrow(row[c], out + c);
}

inline int64_t span_channels(int64_t D, int64_t span) { return min(kSpan, D - span * kSpan); }

// Packs the spans [span_begin, span_end) of rows[source_row[r]], r < count, into `out` [spans, stride].
template <class T, class Span>
inline void pack_rows_in_spans(const T* rows, int64_t D, const int32_t* source_row, int64_t count, int64_t span_begin,
                               int64_t span_end, int64_t stride, Span* out) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t span = span_begin; span < span_end; ++span)
      pack_span(rows + source_row[r] * D + span * kSpan, span_channels(D, span),
                out + (span - span_begin) * stride + r);
}

template <class T>
struct PackedSpan {
  using type = WideSpan;
};
template <>
struct PackedSpan<BFloat16> {
  using type = PairedSpan;
};

void pack_spans(const void* rows, Dtype dtype, int64_t D, const int32_t* source_row, int64_t begin, int64_t end,
                int64_t valid_rows, void* packed) {
  with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    auto* out = static_cast<typename PackedSpan<T>::type*>(packed);
    pack_rows_in_spans(static_cast<const T*>(rows), D, source_row + begin, end - begin, 0, (D + kSpan - 1) / kSpan,
                       valid_rows, out + begin);
  });
}

}  // namespace
}  // namespace atk
