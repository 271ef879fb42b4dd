// Max-mean similarity on the CPU: finds the valid rows, cuts the work into tasks and hands them to the kernels.
// No cut changes a result: every score, and every row of a gradient, is computed whole by one task.
#include "max_mean.h"

#include <algorithm>
#include <cstring>

#include "isa.h"
#include "parallel.h"

namespace atk {
namespace {

constexpr int64_t kFramesInCache = 96 << 10;     // floats: packed frames that stay in a 1 MiB second-level cache
constexpr int64_t kCaptionsInCache = 2 << 20;    // floats: packed captions that stay in the last-level cache
constexpr int64_t kGradFrames = 256;             // frames that the backward takes at a time
constexpr int64_t kGradCaptions = 8;             // captions whose gradients one backward task sums
constexpr double kOperationsPerThread = 1 << 20;  // below this, starting a thread costs more than it saves

// Owner of a ValidRows.
struct RowLists {
  std::vector<int32_t> position;
  std::vector<int64_t> first;

  RowLists(const bool* mask, int64_t sequences, int64_t length) : first(sequences + 1) {
    position.reserve(mask ? std::count(mask, mask + sequences * length, true) : sequences * length);
    for (int64_t s = 0; s < sequences; ++s) {
      for (int64_t r = 0; r < length; ++r)
        if (!mask || mask[s * length + r]) position.push_back(static_cast<int32_t>(r));
      first[s + 1] = static_cast<int64_t>(position.size());
    }
  }

  ValidRows view() const { return {position.data(), first.data()}; }
  int64_t count(int64_t s) const { return first[s + 1] - first[s]; }
};

int workers_for(const MaxMean& op, double operations) {
  return static_cast<int>(std::min<double>(std::max(op.threads, 1), 1 + operations / kOperationsPerThread));
}

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

void frame_gradients(const MaxMean& op, const Kernels& kernels, const RowLists& frames,
                     const std::vector<int32_t>& captions, int workers, const float* grad, void* grad_audio) {
  const int64_t stride = round_up(op.d, kernels.lanes);
  const float* text = static_cast<const float*>(op.text);
  Buffer<float> wide;
  if (op.dtype != Dtype::float32 || stride != op.d) {
    const int64_t element = op.dtype == Dtype::float32 ? 4 : 2;
    wide = make_buffer<float>(op.n_t * op.l_t * stride);
    parallel_for(op.n_t, workers, [&](int64_t j, int) {
      kernels.widen_rows(static_cast<const char*>(op.text) + j * op.l_t * op.d * element, op.dtype, op.l_t, op.d,
                         stride, wide.get() + j * op.l_t * stride);
    });
    text = wide.get();
  }
  const int64_t chunks = (op.l_a + kGradFrames - 1) / kGradFrames, frames_per_task = std::min(op.l_a, kGradFrames);
  const auto weights = make_buffer<float>(workers * op.n_t);
  const auto sums = make_buffer<float>(workers * frames_per_task * stride);
  parallel_for(op.n_a * chunks, workers, [&](int64_t item, int worker) {
    const int64_t i = item / chunks, begin = item % chunks * kGradFrames;
    float* weight = weights.get() + worker * op.n_t;
    for (int64_t j = 0; j < op.n_t; ++j) weight[j] = grad[i * op.n_t + j] / static_cast<float>(frames.count(i));
    kernels.frame_grad({&op, frames.view(), captions.data(), static_cast<int64_t>(captions.size()), weight, text,
                        stride, i, begin, std::min(begin + kGradFrames, op.l_a),
                        sums.get() + worker * frames_per_task * stride, grad_audio});
  });
}

void token_gradients(const MaxMean& op, const Kernels& kernels, const RowLists& frames,
                     const std::vector<int32_t>& captions, int workers, const float* grad, void* grad_text) {
  std::memset(grad_text, 0, op.n_t * op.l_t * op.d * (op.dtype == Dtype::float32 ? 4 : 2));
  const int64_t stride = round_up(op.d, kernels.lanes), count = static_cast<int64_t>(captions.size());
  const int64_t block = std::clamp<int64_t>((count + workers - 1) / workers, 1, kGradCaptions);
  const int64_t chunk = std::min(op.l_a, kGradFrames), lists_size = block * (3 * chunk + 1);
  const auto audio = make_buffer<float>(workers * chunk * stride);
  const auto sums = make_buffer<float>(workers * block * op.l_t * stride);
  const auto heads = make_buffer<int32_t>(workers * op.l_t);
  const auto lists = make_buffer<int32_t>(workers * lists_size);
  parallel_for((count + block - 1) / block, workers, [&](int64_t item, int worker) {
    const int64_t begin = item * block;
    kernels.token_grad({&op, frames.view(), captions.data() + begin, std::min(block, count - begin), grad, stride,
                        chunk, audio.get() + worker * chunk * stride, sums.get() + worker * block * op.l_t * stride,
                        heads.get() + worker * op.l_t, lists.get() + worker * lists_size, grad_text});
  });
}

}  // namespace

void max_mean_forward(const MaxMean& op, float* sim) {
  const Kernels& kernels = atk::kernels();
  const RowLists frames(op.audio_mask, op.n_a, op.l_a), tokens(op.text_mask, op.n_t, op.l_t);
  const int workers =
      workers_for(op, 2.0 * static_cast<double>(frames.position.size()) * tokens.position.size() * op.d);

  const int64_t chunk = round_up(std::clamp<int64_t>(kFramesInCache / op.d, 1, op.l_a), kernels.block);
  const int64_t group = std::clamp<int64_t>(kCaptionsInCache / (op.l_t * op.d), 1, op.n_t);
  const auto packed_frames = make_buffer<float>(workers * chunk * op.d);
  const auto packed_tokens = make_buffer<float>(group * op.l_t * op.d);
  const auto magnitude = make_buffer<float>(group);
  for (int64_t begin = 0; begin < op.n_t; begin += group) {
    const int64_t end = std::min(begin + group, op.n_t);
    parallel_for(end - begin, workers, [&](int64_t j, int) {
      float* packed = packed_tokens.get() + (tokens.first[begin + j] - tokens.first[begin]) * op.d;
      magnitude[j] = kernels.pack_caption(op, tokens.view(), begin + j, packed);
    });
    // Few clips: each is packed again for every part of the captions, so that all threads have work.
    const int64_t parts = std::min<int64_t>((4 * workers + op.n_a - 1) / op.n_a, end - begin);
    const PackedCaptions captions{packed_tokens.get(), magnitude.get(), tokens.view(), begin, end};
    parallel_for(op.n_a * parts, workers, [&](int64_t item, int worker) {
      const int64_t part = item % parts, count = end - begin;
      kernels.score({&op, captions, frames.view(), item / parts, begin + count * part / parts,
                     begin + count * (part + 1) / parts, chunk, packed_frames.get() + worker * chunk * op.d, sim});
    });
  }
}

void max_mean_backward(const MaxMean& op, const float* grad, void* grad_audio, void* grad_text) {
  const Kernels& kernels = atk::kernels();
  const RowLists frames(op.audio_mask, op.n_a, op.l_a), tokens(op.text_mask, op.n_t, op.l_t);
  std::vector<int32_t> captions;  // without a valid token a caption has no winners, and its index was never written
  for (int64_t j = 0; j < op.n_t; ++j)
    if (tokens.count(j)) captions.push_back(static_cast<int32_t>(j));
  const int workers = workers_for(op, 2.0 * static_cast<double>(frames.position.size()) * captions.size() * op.d);
  frame_gradients(op, kernels, frames, captions, workers, grad, grad_audio);
  token_gradients(op, kernels, frames, captions, workers, grad, grad_text);
}

}  // namespace atk
