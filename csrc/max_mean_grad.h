// Backward of the max-mean similarity, from the winner indices:
//
//   dA[i,t] = sum_j w[i,j] T[j, index(i,j,t)]        dT[j,l] = sum_{i,t: index(i,j,t) = l} w[i,j] A[i,t]
//
// with w[i,j] = dL/dsim[i,j] / (frames of clip i). Both read a clip's frames once per group of captions and span of
// channels, so that the tokens of the group (or their sums) stay in the L1 cache. Every element is summed over the
// captions or over the frames in a fixed order.
#pragma once

#include <type_traits>

#include "max_mean_span.h"

namespace atk {
namespace {

constexpr int kGatherCaptions = 8;            // largest group of captions for dA
constexpr int kScatterCaptions = 4;           // largest group of captions for dT
constexpr int64_t kGroupTokens = 192;         // largest group of captions, in tokens, unless a single caption is longer
constexpr int64_t kPartialFrames = 16 << 10;  // frames in a partial sum of dT: longer float32 sums lose precision

// Captions that get a nonzero gradient from one clip.
struct CaptionGroup {
  int size;
  int64_t tokens;
  int64_t caption[kGatherCaptions];
  float weight[kGatherCaptions];
};

// Calls visit(group) for groups of up to `max_size` captions. The groups cover the captions in [begin, end) that
// have tokens and a nonzero gradient from this clip.
template <int max_size, class Visit>
inline void for_each_group(const MaxMean& op, const ValidRows& frames, const ValidRows& tokens, const float* grad,
                           int64_t clip, int64_t begin, int64_t end, const Visit& visit) {
  const float clip_frames = static_cast<float>(frames.offset[clip + 1] - frames.offset[clip]);
  if (op.pairs) {
    begin = begin < clip ? clip : begin;
    end = min(end, clip + 1);
  } else {
    grad += clip * op.text.num_sequences;
  }
  CaptionGroup group = {};
  for (int64_t j = begin; j < end; ++j) {
    const int64_t caption_tokens = tokens.offset[j + 1] - tokens.offset[j];
    if (grad[j] == 0 || caption_tokens == 0) continue;
    if (group.size == max_size || (group.size && group.tokens + caption_tokens > kGroupTokens)) {
      visit(group);
      group.size = 0;
      group.tokens = 0;
    }
    group.caption[group.size] = j;
    group.weight[group.size] = grad[j] / clip_frames;
    group.size += 1;
    group.tokens += caption_tokens;
  }
  if (group.size) visit(group);
}

// Calls body(std::integral_constant<int, size>{}), 1 <= size <= B, so loops over a group have constant bounds.
template <int B, class Body>
inline void with_size(int size, const Body& body) {
  if constexpr (B > 1)
    if (size < B) return with_size<B - 1>(size, body);
  body(std::integral_constant<int, B>{});
}

// sum[t] += w[j] T[j, index[j][t]] for B captions j. The local copies of the arguments stay in registers, because the
// compiler knows that no store changes them.
template <int B, class Index, class Span>
void gather_tokens(const Index* const* index, const Span* const* tokens, const float* weight, int64_t frames,
                   WideSpan* sum) {
  const Index* winner[B];
  const Span* rows[B];
  float weights[B];
  for (int b = 0; b < B; ++b) {
    winner[b] = index[b];
    rows[b] = tokens[b];
    weights[b] = weight[b];
  }
  for (int64_t t = 0; t < frames; ++t) {
    SpanVectors total = load(sum[t]);
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) total = multiply_add(total, load(rows[b][winner[b][t]]), weights[b]);
    store(sum + t, total);
  }
}

// sum[j][index[j][t]] += w[j] A[t] for B captions j.
template <int B, class Index, class Span>
void scatter_frames(const Index* const* index, WideSpan* const* sum, const float* weight, int64_t frames,
                    const Span* audio) {
  const Index* winner[B];
  WideSpan* sums[B];
  float weights[B];
  for (int b = 0; b < B; ++b) {
    winner[b] = index[b];
    sums[b] = sum[b];
    weights[b] = weight[b];
  }
  for (int64_t t = 0; t < frames; ++t) {
    const SpanVectors row = load(audio[t]);
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      WideSpan* out = sums[b] + winner[b][t];
      store(out, multiply_add(load(*out), row, weights[b]));
    }
  }
}

template <class T, class Index>
void frame_grad_typed(const FrameGradTask& task) {
  using Span = typename PackedSpan<T>::type;
  const MaxMean& op = *task.op;
  const Chunk& chunk = task.chunk;
  const int64_t count = chunk.end - chunk.begin;
  const int64_t all_tokens = task.tokens.offset[op.text.num_sequences];
  WideSpan* sums = reinterpret_cast<WideSpan*>(task.sums);
  if (task.first_range)
    std::memset(sums + task.span_begin * count, 0, (task.span_end - task.span_begin) * count * sizeof *sums);
  const auto add_group = [&](const CaptionGroup& group) {
    const Index* index[kGatherCaptions];
    const Span* tokens[kGatherCaptions];
    for (int b = 0; b < group.size; ++b)
      index[b] = winner_indices<Index>(op, task.winners, group.caption[b], chunk.begin);
    for (int64_t span = task.span_begin; span < task.span_end; ++span) {
      for (int b = 0; b < group.size; ++b)
        tokens[b] =
            static_cast<const Span*>(task.packed_text) + span * all_tokens + task.tokens.offset[group.caption[b]];
      with_size<kGatherCaptions>(group.size, [&](auto size) {
        gather_tokens<decltype(size)::value>(index, tokens, group.weight, count, sums + span * count);
      });
    }
  };
  for_each_group<kGatherCaptions>(op, task.frames, task.tokens, task.grad, chunk.clip, task.caption_begin,
                                  task.caption_end, add_group);
  if (!task.last_range) return;
  for (int64_t span = task.span_begin; span < task.span_end; ++span) {
    T* out = static_cast<T*>(task.grad_audio) + span * kSpan;
    const int64_t channels = span_channels(op.D, span);
    for (int64_t r = 0; r < count; ++r)
      narrow_channels(sums[span * count + r].channel, channels, out + task.frames.source_row[chunk.begin + r] * op.D);
  }
}

void frame_grad(const FrameGradTask& task) {
  with_dtype(task.op->dtype, [&](auto type) {
    with_index(task.winners.index_bytes, [&](auto index) {
      frame_grad_typed<typename decltype(type)::type, typename decltype(index)::type>(task);
    });
  });
}

// Adds the frames [begin, end) of one clip to the partial sums of the task's captions.
template <class T, class Index>
void add_frames(const TokenGradTask& task, int64_t clip, int64_t begin, int64_t end) {
  const MaxMean& op = *task.op;
  const int64_t spans = task.span_end - task.span_begin;
  const int64_t first_token = task.tokens.offset[task.caption_begin];
  WideSpan* partial = reinterpret_cast<WideSpan*>(task.partial);
  auto* frames = reinterpret_cast<typename PackedSpan<T>::type*>(task.packed_frames);
  bool packed = false;
  const auto add_group = [&](const CaptionGroup& group) {
    if (!packed)
      pack_rows_in_spans(static_cast<const T*>(op.audio.rows), op.D, task.frames.source_row + begin, end - begin,
                         task.span_begin, task.span_end, task.chunk_frames, frames);
    packed = true;
    const Index* index[kScatterCaptions];
    WideSpan* sums[kScatterCaptions];
    for (int b = 0; b < group.size; ++b) index[b] = winner_indices<Index>(op, task.winners, group.caption[b], begin);
    for (int64_t s = 0; s < spans; ++s) {
      for (int b = 0; b < group.size; ++b) {
        const int64_t j = group.caption[b];
        const int64_t offset = task.tokens.offset[j];
        sums[b] = partial + (offset - first_token) * spans + s * (task.tokens.offset[j + 1] - offset);
      }
      with_size<kScatterCaptions>(group.size, [&](auto size) {
        scatter_frames<decltype(size)::value>(index, sums, group.weight, end - begin, frames + s * task.chunk_frames);
      });
    }
  };
  for_each_group<kScatterCaptions>(op, task.frames, task.tokens, task.grad, clip, task.caption_begin, task.caption_end,
                                   add_group);
}

template <class T, class Index>
void token_grad_typed(const TokenGradTask& task) {
  const MaxMean& op = *task.op;
  const int64_t* token_offset = task.tokens.offset;
  const int64_t* frame_offset = task.frames.offset;
  const int64_t spans = task.span_end - task.span_begin;
  const int64_t size = (token_offset[task.caption_end] - token_offset[task.caption_begin]) * spans * kSpan;
  std::memset(task.partial, 0, size * sizeof(float));
  std::memset(task.total, 0, size * sizeof(float));
  const int64_t clip_begin = op.pairs ? task.caption_begin : 0;
  const int64_t clip_end = op.pairs ? task.caption_end : op.audio.num_sequences;
  for (int64_t i = clip_begin; i < clip_end; ++i) {
    for (int64_t r = frame_offset[i]; r < frame_offset[i + 1]; r += task.chunk_frames)
      add_frames<T, Index>(task, i, r, min(r + task.chunk_frames, frame_offset[i + 1]));
    if (i + 1 < clip_end && frame_offset[i] / kPartialFrames == frame_offset[i + 1] / kPartialFrames) continue;
    for (int64_t k = 0; k < size; ++k) task.total[k] += task.partial[k];
    std::memset(task.partial, 0, size * sizeof(float));
  }
  const WideSpan* total = reinterpret_cast<const WideSpan*>(task.total);
  for (int64_t j = task.caption_begin; j < task.caption_end; ++j)
    for (int64_t span = task.span_begin; span < task.span_end; ++span)
      for (int64_t l = token_offset[j]; l < token_offset[j + 1]; ++l, ++total)
        narrow_channels(total->channel, span_channels(op.D, span),
                        static_cast<T*>(task.grad_text) + task.tokens.source_row[l] * op.D + span * kSpan);
}

void token_grad(const TokenGradTask& task) {
  with_dtype(task.op->dtype, [&](auto type) {
    with_index(task.winners.index_bytes, [&](auto index) {
      token_grad_typed<typename decltype(type)::type, typename decltype(index)::type>(task);
    });
  });
}

}  // namespace
}  // namespace atk
