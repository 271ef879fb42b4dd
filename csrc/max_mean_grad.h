// Backward of the max-mean similarity, from the saved winners:
//
//   dA[i,t] = sum_j w[i,j] T[j, index(i,j,t)]        dT[j,l] = sum_{i,t: index(i,j,t) = l} w[i,j] A[i,t]
//
// with w[i,j] = dL/dsim[i,j] over the number of frames of clip i. Both are sums of whole rows, taken in registers
// kSpan channels at a time. Every output row is summed by one thread in an order that the shapes alone decide.
#pragma once

#include "simd.h"

namespace atk {
namespace {

constexpr int kSpanVectors = 8;

template <class T>
void widen_matrix(const T* rows, int64_t count, int64_t d, int64_t stride, float* out) {
  for (int64_t r = 0; r < count; ++r, rows += d, out += stride) {
    for (int64_t c = 0; c < d; ++c) out[c] = widen(rows[c]);
    for (int64_t c = d; c < stride; ++c) out[c] = 0;
  }
}

void widen_rows(const void* rows, Dtype dtype, int64_t count, int64_t d, int64_t stride, float* out) {
  with_dtype(dtype, [&](auto type) {
    widen_matrix(static_cast<const typename decltype(type)::type*>(rows), count, d, stride, out);
  });
}

template <class T>
inline void narrow_row(const float* row, int64_t d, T* out) {
  for (int64_t c = 0; c < d; ++c) narrow(row[c], out + c);
}

// Calls body.operator()<vectors>(first channel) over [0, stride) in spans of 8, 4, 2, 1 vectors.
template <int V, class Body>
inline void over_spans(int64_t stride, int64_t c, const Body& body) {
  for (; c + V * kLanes <= stride; c += V * kLanes) body.template operator()<V>(c);
  if constexpr (V > 1) over_spans<V / 2>(stride, c, body);
}

template <int V>
inline void add_row(Vec (&sum)[V], const float* row) {
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sum[v] += load(row + v * kLanes);
}

template <int V>
inline void add_row(Vec (&sum)[V], const float* row, float weight) {
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sum[v] += load(row + v * kLanes) * weight;
}

// Adds a block of captions to the sums of a clip's frames; one span of the captions' tokens stays in the cache.
template <class Index>
struct GatherTokens {
  const FrameGradTask& task;
  const int32_t* position;  // [count] valid frames of the task
  int64_t count, block_begin, block_end;

  template <int V>
  void operator()(int64_t c) const {
    const MaxMean& op = *task.op;
    const Index* index = static_cast<const Index*>(op.index) + task.clip * op.n_t * op.l_a;
    for (int64_t r = 0; r < count; ++r) {
      float* out = task.sum + r * task.stride + c;
      Vec sum[V] = {};
      if (block_begin)
        for (int v = 0; v < V; ++v) sum[v] = load(out + v * kLanes);
      for (int64_t b = block_begin; b < block_end; ++b) {
        const int64_t j = task.captions[b], l = index[j * op.l_a + position[r]];
        add_row(sum, task.text + (j * op.l_t + l) * task.stride + c, task.weight[j]);
      }
      for (int v = 0; v < V; ++v) store(out + v * kLanes, sum[v]);
    }
  }
};

template <class T, class Index>
void frame_grad_typed(const FrameGradTask& task) {
  const MaxMean& op = *task.op;
  const int32_t* position = task.frames.position + task.frames.first[task.clip];
  const int32_t* end = task.frames.position + task.frames.first[task.clip + 1];
  while (position < end && *position < task.frame_begin) ++position;
  while (position < end && end[-1] >= task.frame_end) --end;
  const int64_t count = end - position;

  constexpr int64_t kCacheBytes = 256 << 10;
  const int64_t caption_bytes = op.l_t * kSpanVectors * sizeof(Vec);
  const int64_t block = caption_bytes * 4 > kCacheBytes ? 4 : kCacheBytes / caption_bytes;
  for (int64_t b = 0; b < task.caption_count; b += block) {
    const GatherTokens<Index> gather{task, position, count, b, min(b + block, task.caption_count)};
    over_spans<kSpanVectors>(task.stride, 0, gather);
  }
  T* out = static_cast<T*>(task.grad_audio) + task.clip * op.l_a * op.d;
  std::memset(out + task.frame_begin * op.d, 0, (task.frame_end - task.frame_begin) * op.d * sizeof(T));
  for (int64_t r = 0; r < count && task.caption_count; ++r)
    narrow_row(task.sum + r * task.stride, op.d, out + position[r] * op.d);
}

void frame_grad(const FrameGradTask& task) {
  with_dtype(task.op->dtype, [&](auto type) {
    with_index(task.op->index_bytes, [&](auto index) {
      frame_grad_typed<typename decltype(type)::type, typename decltype(index)::type>(task);
    });
  });
}

// The frames that a caption's tokens won in a chunk of frames: a linked list for each token with at least one.
struct WonFrames {
  int32_t* tokens;  // how many
  int32_t* token;   // [tokens]
  int32_t* start;   // [tokens] first frame of the token's list
  int32_t* next;    // [frames] next frame of the same list, -1 at its end
};

inline WonFrames won_frames(const TokenGradTask& task, int64_t b) {
  int32_t* lists = task.lists + b * (3 * task.chunk + 1);
  return {lists, lists + 1, lists + 1 + task.chunk, lists + 1 + 2 * task.chunk};
}

// Frames position[0 .. count) lie in [origin, origin + chunk). Going backwards makes each list ascend. `head` must
// be -1 everywhere, and is left so.
template <class Index>
void link_frames(const Index* index, const int32_t* position, int64_t count, int64_t origin, int32_t* head,
                 const WonFrames& won) {
  int32_t tokens = 0;
  for (int64_t r = count - 1; r >= 0; --r) {
    const int32_t l = index[position[r]], frame = static_cast<int32_t>(position[r] - origin);
    const int32_t previous = head[l];
    won.token[tokens] = l;
    tokens += previous < 0;
    won.next[frame] = previous;
    head[l] = frame;
  }
  for (int32_t k = 0; k < tokens; ++k) {
    won.start[k] = head[won.token[k]];
    head[won.token[k]] = -1;
  }
  *won.tokens = tokens;
}

// Adds a chunk of frames to the sums of all captions; one span of the chunk's frames stays in the cache.
struct GatherFrames {
  const TokenGradTask& task;
  const float* audio;  // row of the chunk's first frame
  const float* grad;   // [n_t] of the clip
  float clip_frames;

  template <int V>
  void operator()(int64_t c) const {
    for (int64_t b = 0; b < task.caption_count; ++b) {
      const WonFrames won = won_frames(task, b);
      const float weight = grad[task.captions[b]] / clip_frames;
      for (int32_t k = 0; k < *won.tokens; ++k) {
        Vec rows[V] = {};
        for (int32_t frame = won.start[k]; frame >= 0; frame = won.next[frame])
          add_row(rows, audio + frame * task.stride + c);
        float* out = task.sum + (b * task.op->l_t + won.token[k]) * task.stride + c;
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store(out + v * kLanes, load(out + v * kLanes) + rows[v] * weight);
      }
    }
  }
};

// Adds the frames [origin, origin + chunk) of one clip, of which position[0 .. count) are valid.
template <class T, class Index>
void add_chunk(const TokenGradTask& task, int64_t clip, float clip_frames, const int32_t* position, int64_t count,
               int64_t origin) {
  const MaxMean& op = *task.op;
  const T* rows = static_cast<const T*>(op.audio) + (clip * op.l_a + origin) * op.d;
  const float* audio = reinterpret_cast<const float*>(rows);
  if (op.dtype != Dtype::float32 || task.stride != op.d) {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t frame = position[r] - origin;
      widen_matrix(rows + frame * op.d, 1, op.d, task.stride, task.audio + frame * task.stride);
    }
    audio = task.audio;
  }
  for (int64_t b = 0; b < task.caption_count; ++b) {
    const int64_t pair = clip * op.n_t + task.captions[b];
    link_frames(static_cast<const Index*>(op.index) + pair * op.l_a, position, count, origin, task.head,
                won_frames(task, b));
  }
  over_spans<kSpanVectors>(task.stride, 0, GatherFrames{task, audio, task.grad + clip * op.n_t, clip_frames});
}

template <class T, class Index>
void token_grad_typed(const TokenGradTask& task) {
  const MaxMean& op = *task.op;
  std::memset(task.sum, 0, task.caption_count * op.l_t * task.stride * sizeof(float));
  for (int64_t l = 0; l < op.l_t; ++l) task.head[l] = -1;
  for (int64_t i = 0; i < op.n_a; ++i) {
    const int32_t* position = task.frames.position + task.frames.first[i];
    const int32_t* end = task.frames.position + task.frames.first[i + 1];
    const float clip_frames = static_cast<float>(end - position);
    while (position < end) {
      const int64_t origin = *position;
      const int32_t* stop = position;
      while (stop < end && *stop < origin + task.chunk) ++stop;
      add_chunk<T, Index>(task, i, clip_frames, position, stop - position, origin);
      position = stop;
    }
  }
  for (int64_t b = 0; b < task.caption_count; ++b)
    for (int64_t l = 0; l < op.l_t; ++l)
      narrow_row(task.sum + (b * op.l_t + l) * task.stride, op.d,
                 static_cast<T*>(task.grad_text) + (task.captions[b] * op.l_t + l) * op.d);
}

void token_grad(const TokenGradTask& task) {
  with_dtype(task.op->dtype, [&](auto type) {
    with_index(task.op->index_bytes, [&](auto index) {
      token_grad_typed<typename decltype(type)::type, typename decltype(index)::type>(task);
    });
  });
}

}  // namespace
}  // namespace atk
