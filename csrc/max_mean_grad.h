// Backward of the max-mean similarity, from the winners:
//
//   dA[i,t] = sum_j w[i,j] T[j, index(i,j,t)]        dT[j,l] = sum_{i,t: index(i,j,t) = l} w[i,j] A[i,t]
//
// with w[i,j] = dL/dsim[i,j] over the number of frames of clip i. Both walk over a clip's frames for a few captions
// together, one span of channels at a time, so that these captions' tokens (or the sums for them) stay in the
// first-level cache. Every element is a sum over the captions or over the frames in an order that is always the same.
#pragma once

#include <type_traits>

#include "simd.h"

namespace atk {
namespace {

constexpr int kSpanVectors = kSpan / kLanes;
constexpr int kGathered = 8, kScattered = 4;  // captions in one walk over the frames, at most
constexpr int64_t kTokensTogether = 192;      // that they have, unless one caption alone has more
constexpr int64_t kFramesInSum = 16 << 10;    // whose parts of dT are added one by one: longer chains lose digits

struct SpanVectors {
  Vec part[kSpanVectors];
};

// A span of float32 channels.
struct WideSpan {
  float channel[kSpan];
};

// A span of bfloat16 channels: half the cache, and widened in one operation. Word c holds the channel c in its low half
// and the channel c + kSpan / 2 in its high half.
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
    x.part[v + kSpanVectors / 2] = reinterpret_cast<Vec>(words & static_cast<int32_t>(0xffff0000));
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

template <class T>
inline void pack_span(const T* row, int64_t n, WideSpan* out) {
  float last[kSpan] = {};
  if (n == kSpan) {
    for (int v = 0; v < kSpanVectors; ++v) store(out->channel + v * kLanes, load(row + v * kLanes));
  } else {
    for (int64_t c = 0; c < n; ++c) last[c] = widen(row[c]);
    std::memcpy(out, last, sizeof last);
  }
}

inline void pack_span(const BFloat16* row, int64_t n, PairedSpan* out) {
  uint16_t bits[kSpan] = {};
  std::memcpy(bits, row, n * sizeof *row);
  for (int64_t c = 0; c < kSpan / 2; ++c) out->word[c] = bits[c] | static_cast<uint32_t>(bits[c + kSpan / 2]) << 16;
}

template <class T>
inline void narrow_row(const float* row, int64_t d, T* out) {
  for (int64_t c = 0; c < d; ++c) narrow(row[c], out + c);
}

// Packs the spans begin .. before end of `count` rows as [spans, stride].
template <class T, class Span>
inline void pack_rows_in_spans(const T* rows, int64_t d, const int32_t* row, int64_t count, int64_t begin, int64_t end,
                               int64_t stride, Span* out) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t span = begin; span < end; ++span)
      pack_span(rows + row[r] * d + span * kSpan, min(kSpan, d - span * kSpan), out + (span - begin) * stride + r);
}

template <class T>
struct PackedSpan {
  using type = WideSpan;
};
template <>
struct PackedSpan<BFloat16> {
  using type = PairedSpan;
};

void pack_spans(const void* rows, Dtype dtype, int64_t d, const int32_t* row, int64_t begin, int64_t end,
                int64_t total, void* packed) {
  with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    auto* out = static_cast<typename PackedSpan<T>::type*>(packed);
    pack_rows_in_spans(static_cast<const T*>(rows), d, row + begin, end - begin, 0, (d + kSpan - 1) / kSpan, total,
                       out + begin);
  });
}

// Captions whose gradient from one clip is not zero.
struct Group {
  int size;
  int64_t tokens;
  int64_t caption[kGathered];
  float weight[kGathered];
};

// Calls walk(group) for the captions begin .. before end that have tokens and a gradient from this clip, up to `most`
// of them at a time.
template <int most, class Walk>
inline void over_groups(const MaxMean& op, const ValidRows& frames, const ValidRows& tokens, const float* grad,
                        int64_t clip, int64_t begin, int64_t end, const Walk& walk) {
  const float clip_frames = static_cast<float>(frames.first[clip + 1] - frames.first[clip]);
  if (op.pairs) {
    begin = begin < clip ? clip : begin;
    end = min(end, clip + 1);
  } else {
    grad += clip * op.text.count;
  }
  Group group = {};
  for (int64_t j = begin; j < end; ++j) {
    const int64_t count = tokens.first[j + 1] - tokens.first[j];
    if (grad[j] == 0 || count == 0) continue;
    if (group.size == most || (group.size && group.tokens + count > kTokensTogether)) {
      walk(group);
      group.size = 0;
      group.tokens = 0;
    }
    group.caption[group.size] = j;
    group.weight[group.size] = grad[j] / clip_frames;
    group.size += 1;
    group.tokens += count;
  }
  if (group.size) walk(group);
}

// Calls body.operator()<size>().
template <int B, class Body>
inline void with_size(int size, const Body& body) {
  if constexpr (B > 1)
    if (size < B) return with_size<B - 1>(size, body);
  body(std::integral_constant<int, B>{});
}

// sum[t] += w[j] T[j, index[j][t]] for B captions j.
template <int B, class Index, class Span>
void gather_tokens(const Index* const* index, const Span* const* tokens, const float* weight, int64_t frames,
                   WideSpan* sum) {
  const Index* which[B];
  const Span* rows[B];
  float weights[B];  // the compiler keeps copies in registers: the stores below cannot change them
  for (int b = 0; b < B; ++b) which[b] = index[b], rows[b] = tokens[b], weights[b] = weight[b];
  for (int64_t t = 0; t < frames; ++t) {
    SpanVectors total = load(sum[t]);
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) total = multiply_add(total, load(rows[b][which[b][t]]), weights[b]);
    store(sum + t, total);
  }
}

// sum[j][index[j][t]] += w[j] A[t] for B captions j.
template <int B, class Index, class Span>
void scatter_frames(const Index* const* index, WideSpan* const* sum, const float* weight, int64_t frames,
                    const Span* audio) {
  const Index* which[B];
  WideSpan* sums[B];
  float weights[B];
  for (int b = 0; b < B; ++b) which[b] = index[b], sums[b] = sum[b], weights[b] = weight[b];
  for (int64_t t = 0; t < frames; ++t) {
    const SpanVectors row = load(audio[t]);
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      WideSpan* out = sums[b] + which[b][t];
      store(out, multiply_add(load(*out), row, weights[b]));
    }
  }
}

template <class T, class Index>
void frame_grad_typed(const FrameGradTask& task) {
  using Span = typename PackedSpan<T>::type;
  const MaxMean& op = *task.op;
  const Chunk& chunk = task.chunk;
  const int64_t count = chunk.end - chunk.begin, all_tokens = task.tokens.first[op.text.count];
  WideSpan* sum = reinterpret_cast<WideSpan*>(task.sum);
  if (task.first)
    std::memset(sum + task.span_begin * count, 0, (task.span_end - task.span_begin) * count * sizeof *sum);
  const auto walk = [&](const Group& group) {
    const Index* index[kGathered];
    const Span* tokens[kGathered];
    for (int b = 0; b < group.size; ++b)
      index[b] = winners_of<Index>(op, task.winners, group.caption[b], chunk.begin);
    for (int64_t span = task.span_begin; span < task.span_end; ++span) {
      for (int b = 0; b < group.size; ++b)
        tokens[b] = static_cast<const Span*>(task.text) + span * all_tokens + task.tokens.first[group.caption[b]];
      with_size<kGathered>(group.size, [&](auto size) {
        gather_tokens<decltype(size)::value>(index, tokens, group.weight, count, sum + span * count);
      });
    }
  };
  over_groups<kGathered>(op, task.frames, task.tokens, task.grad, chunk.clip, task.caption_begin, task.caption_end,
                         walk);
  if (!task.last) return;
  for (int64_t span = task.span_begin; span < task.span_end; ++span) {
    T* out = static_cast<T*>(task.grad_audio) + span * kSpan;
    const int64_t n = min(kSpan, op.d - span * kSpan);
    for (int64_t r = 0; r < count; ++r)
      narrow_row(sum[span * count + r].channel, n, out + task.frames.row[chunk.begin + r] * op.d);
  }
}

void frame_grad(const FrameGradTask& task) {
  with_dtype(task.op->dtype, [&](auto type) {
    with_index(task.winners.bytes, [&](auto index) {
      frame_grad_typed<typename decltype(type)::type, typename decltype(index)::type>(task);
    });
  });
}

// Adds the frames begin .. before end of one clip to the sums of its captions.
template <class T, class Index>
void add_frames(const TokenGradTask& task, int64_t clip, int64_t begin, int64_t end) {
  const MaxMean& op = *task.op;
  const int64_t spans = task.span_end - task.span_begin, first_token = task.tokens.first[task.caption_begin];
  WideSpan* sum = reinterpret_cast<WideSpan*>(task.sum);
  auto* audio = reinterpret_cast<typename PackedSpan<T>::type*>(task.audio);
  bool packed = false;
  const auto walk = [&](const Group& group) {
    if (!packed)
      pack_rows_in_spans(static_cast<const T*>(op.audio.rows), op.d, task.frames.row + begin, end - begin,
                         task.span_begin, task.span_end, task.chunk, audio);
    packed = true;
    const Index* index[kScattered];
    WideSpan* sums[kScattered];
    for (int b = 0; b < group.size; ++b) index[b] = winners_of<Index>(op, task.winners, group.caption[b], begin);
    for (int64_t s = 0; s < spans; ++s) {
      for (int b = 0; b < group.size; ++b) {
        const int64_t j = group.caption[b], first = task.tokens.first[j];
        sums[b] = sum + (first - first_token) * spans + s * (task.tokens.first[j + 1] - first);
      }
      with_size<kScattered>(group.size, [&](auto size) {
        scatter_frames<decltype(size)::value>(index, sums, group.weight, end - begin, audio + s * task.chunk);
      });
    }
  };
  over_groups<kScattered>(op, task.frames, task.tokens, task.grad, clip, task.caption_begin, task.caption_end, walk);
}

template <class T, class Index>
void token_grad_typed(const TokenGradTask& task) {
  const MaxMean& op = *task.op;
  const int64_t *first = task.tokens.first, *first_frame = task.frames.first;
  const int64_t spans = task.span_end - task.span_begin;
  const int64_t size = (first[task.caption_end] - first[task.caption_begin]) * spans * kSpan;
  std::memset(task.sum, 0, size * sizeof(float));
  std::memset(task.total, 0, size * sizeof(float));
  const int64_t clip_begin = op.pairs ? task.caption_begin : 0, clip_end = op.pairs ? task.caption_end : op.audio.count;
  for (int64_t i = clip_begin; i < clip_end; ++i) {
    for (int64_t r = first_frame[i]; r < first_frame[i + 1]; r += task.chunk)
      add_frames<T, Index>(task, i, r, min(r + task.chunk, first_frame[i + 1]));
    if (i + 1 < clip_end && first_frame[i] / kFramesInSum == first_frame[i + 1] / kFramesInSum) continue;
    for (int64_t k = 0; k < size; ++k) task.total[k] += task.sum[k];
    std::memset(task.sum, 0, size * sizeof(float));
  }
  const WideSpan* total = reinterpret_cast<const WideSpan*>(task.total);
  for (int64_t j = task.caption_begin; j < task.caption_end; ++j)
    for (int64_t span = task.span_begin; span < task.span_end; ++span)
      for (int64_t l = first[j]; l < first[j + 1]; ++l, ++total)
        narrow_row(total->channel, min(kSpan, op.d - span * kSpan),
                   static_cast<T*>(task.grad_text) + task.tokens.row[l] * op.d + span * kSpan);
}

void token_grad(const TokenGradTask& task) {
  with_dtype(task.op->dtype, [&](auto type) {
    with_index(task.winners.bytes, [&](auto index) {
      token_grad_typed<typename decltype(type)::type, typename decltype(index)::type>(task);
    });
  });
}

}  // namespace
}  // namespace atk
