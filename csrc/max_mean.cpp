// Max-mean similarity on the CPU: finds the valid rows, cuts the work into tasks and hands them to the kernels.
// No cut changes a result: every sum that a cut interrupts is completed in an order that the shapes alone decide.
#include "max_mean.h"

#include <algorithm>
#include <cstring>

#include "isa.h"
#include "parallel.h"

namespace atk {
namespace {

constexpr int64_t kFramesInCache = 96 << 10;      // words: packed frames that stay in a 1 MiB second-level cache
constexpr int64_t kCaptionsInCache = 2 << 20;     // words: packed captions that stay in the last-level cache
constexpr int64_t kGradFrames = 256;              // frames that the backward takes at a time
constexpr int64_t kGradCaptions = 64;             // captions whose gradients one task sums, unless they pass
constexpr int64_t kGradSums = 256 << 10;          // floats
constexpr double kOperationsPerThread = 1 << 20;  // below this, starting a thread costs more than it saves
constexpr int64_t kTasksPerThread = 4;

// Owner of a ValidRows.
struct RowLists {
  std::vector<int32_t> row;
  std::vector<int64_t> first;

  explicit RowLists(const Sequences& sequences) : first(sequences.count + 1) {
    const bool* mask = sequences.mask;
    row.reserve(mask ? std::count(mask, mask + sequences.total, true) : sequences.total);
    for (int64_t s = 0; s < sequences.count; ++s) {
      for (int32_t r = sequences.cu_seqlens[s]; r < sequences.cu_seqlens[s + 1]; ++r)
        if (!mask || mask[r]) row.push_back(r);
      first[s + 1] = static_cast<int64_t>(row.size());
    }
  }

  ValidRows view() const { return {row.data(), first.data()}; }
  int64_t count(int64_t s) const { return first[s + 1] - first[s]; }

  int64_t longest() const {
    int64_t rows = 0;
    for (size_t s = 1; s < first.size(); ++s) rows = std::max(rows, first[s] - first[s - 1]);
    return rows;
  }
};

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Parts to cut each of `items` into so that all threads have work.
int64_t parts_for(int64_t items, int workers, int64_t most) {
  const int64_t wanted = workers == 1 ? 1 : (kTasksPerThread * workers + items - 1) / std::max<int64_t>(items, 1);
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(most, 1));
}

// One call: what its parts share.
struct Problem {
  const MaxMean& op;
  const Kernels& kernels = atk::kernels();
  const RowLists frames{op.audio}, tokens{op.text};
  const int64_t element = op.dtype == Dtype::float32 ? 4 : 2;
  const int64_t spans = (op.d + kSpan - 1) / kSpan;
  const int64_t longest_caption = tokens.longest();
  const Screening mode = screening();
  const ScreenKernels* const screen = screens() ? kernels.screen : nullptr;

  bool screens() const {
    return mode != Screening::never && kernels.screen &&
           kernels.screen->applies(op, frames.first.back(), longest_caption, mode == Screening::always);
  }

  int workers(double operations_per_channel) const {
    const double most = 1 + 2 * operations_per_channel * op.d / kOperationsPerThread;
    return static_cast<int>(std::min<double>(std::max(op.threads, 1), most));
  }

  double pairs_per_clip() const { return op.pairs ? 1 : static_cast<double>(op.text.count); }

  // Clips that have to do with the captions begin .. before end, in pieces of at most `length` frames.
  std::vector<Chunk> chunks(int64_t begin, int64_t end, int64_t length) const {
    std::vector<Chunk> result;
    for (int64_t i = op.pairs ? begin : 0; i < (op.pairs ? end : op.audio.count); ++i)
      for (int64_t r = frames.first[i]; r < frames.first[i + 1]; r += length)
        result.push_back({i, r, std::min(r + length, frames.first[i + 1])});
    return result;
  }
};

// Scores the captions begin .. before end, packed together. Without `sim` only the winners are written.
void score_group(const Problem& problem, const Winners& winners, int64_t begin, int64_t end, const float* grad,
                 float* sim) {
  const MaxMean& op = problem.op;
  const Kernels& kernels = problem.kernels;
  const RowLists &frames = problem.frames, &tokens = problem.tokens;
  const int64_t per_word = op.dtype == Dtype::bfloat16 ? kernels.bfloat16_per_word : 1;
  const int64_t words = (op.d + per_word - 1) / per_word, captions = end - begin;
  const int64_t group_tokens = tokens.first[end] - tokens.first[begin];
  const double scores = static_cast<double>(frames.row.size()) * group_tokens;
  const int workers = problem.workers(op.pairs ? scores / op.audio.count : scores);

  const auto packed_tokens = make_buffer<float>(group_tokens * words);
  const auto magnitudes = make_buffer<Magnitudes>(captions);
  const ScreenKernels* screen = problem.screen;
  const auto screened = make_buffer<char>(screen ? screen->caption_offset(op.d, captions, group_tokens) : 0);
  parallel_for(captions, workers, [&](int64_t j, int) {
    const int64_t before = tokens.first[begin + j] - tokens.first[begin];
    magnitudes[j] = kernels.pack_caption(op, tokens.view(), begin + j, packed_tokens.get() + before * words);
    if (screen && tokens.count(begin + j))
      screen->prepare_caption(op, tokens.view(), begin + j, magnitudes[j],
                              screened.get() + screen->caption_offset(op.d, j, before));
  });
  const PackedCaptions packed{packed_tokens.get(), magnitudes.get(), tokens.view(), begin, end};

  const int64_t length = round_up(std::clamp<int64_t>(kFramesInCache / words, 1, op.audio.total), kernels.block);
  const std::vector<Chunk> chunks = problem.chunks(begin, end, length);
  const int64_t count = static_cast<int64_t>(chunks.size());
  const auto packed_frames = make_buffer<float>(workers * length * words);
  const auto sums = make_buffer<float>(count * captions);
  const int64_t scratch_bytes = screen ? screen->scratch_bytes(length, problem.longest_caption, op.d) : 0;
  const auto scratch = make_buffer<char>(workers * scratch_bytes);
  const int64_t parts = parts_for(count, workers, op.pairs ? 1 : captions);
  parallel_for(count * parts, workers, [&](int64_t item, int worker) {
    const Chunk& chunk = chunks[item / parts];
    const int64_t part = item % parts;
    const int64_t first = op.pairs ? chunk.clip : begin + captions * part / parts;
    const int64_t last = op.pairs ? chunk.clip + 1 : begin + captions * (part + 1) / parts;
    const Screen screening{screened.get(), problem.longest_caption, scratch.get() + worker * scratch_bytes,
                           problem.mode == Screening::always};
    (screen ? screen->score : kernels.score)(
        {&op, winners, packed, frames.view(), chunk, first, last, grad, packed_frames.get() + worker * length * words,
         sums.get() + item / parts * captions, screening});
  });
  if (!sim) return;
  for (int64_t c = 0; c < count; ++c) {
    const int64_t i = chunks[c].clip;
    if (op.pairs)
      sim[i] += sums[c * captions + i - begin] / static_cast<float>(frames.count(i));
    else
      for (int64_t j = 0; j < captions; ++j)
        sim[i * op.text.count + begin + j] += sums[c * captions + j] / static_cast<float>(frames.count(i));
  }
}

void score(const Problem& problem, const Winners& winners, int64_t begin, int64_t end, const float* grad, float* sim) {
  const std::vector<int64_t>& first = problem.tokens.first;
  while (begin < end) {
    int64_t stop = begin + 1;
    while (stop < end && (first[stop + 1] - first[begin]) * problem.op.d <= kCaptionsInCache) ++stop;
    score_group(problem, winners, begin, stop, grad, sim);
    begin = stop;
  }
}

// Gradients of the masked rows.
void clear_padding(const Sequences& sequences, int64_t row_bytes, void* grad) {
  for (int64_t r = 0; r < sequences.total && sequences.mask; ++r)
    if (!sequences.mask[r]) std::memset(static_cast<char*>(grad) + r * row_bytes, 0, row_bytes);
}

// Gradients of all frames from the captions begin .. before end. `carried` [valid frames, spans, kSpan] holds their
// sums from one range of captions to the next, null when there is one range.
void frame_gradients(const Problem& problem, const Winners& winners, const void* text, int64_t begin, int64_t end,
                     const float* grad, float* carried, void* grad_audio) {
  const MaxMean& op = problem.op;
  const std::vector<Chunk> chunks = problem.chunks(0, op.audio.count, kGradFrames);
  const int64_t count = static_cast<int64_t>(chunks.size()), width = problem.spans * kSpan;
  const int workers = problem.workers(problem.frames.row.size() * problem.pairs_per_clip());
  const int64_t parts = parts_for(count, workers, problem.spans);
  const auto sums = make_buffer<float>(carried ? 0 : workers * kGradFrames * width);
  parallel_for(count * parts, workers, [&](int64_t item, int worker) {
    const Chunk& chunk = chunks[item / parts];
    const int64_t part = item % parts;
    problem.kernels.frame_grad({&op, winners, problem.frames.view(), problem.tokens.view(), chunk, begin, end,
                                problem.spans * part / parts, problem.spans * (part + 1) / parts, grad, text,
                                carried ? carried + chunk.begin * width : sums.get() + worker * kGradFrames * width,
                                begin == 0, end == op.text.count, grad_audio});
  });
}

// Gradients of the tokens of the captions begin .. before end.
void token_gradients(const Problem& problem, const Winners& winners, int64_t begin, int64_t end, const float* grad,
                     void* grad_text) {
  const MaxMean& op = problem.op;
  const std::vector<int64_t>& first = problem.tokens.first;
  const int64_t width = problem.spans * kSpan;
  const int workers = problem.workers(problem.frames.row.size() * problem.pairs_per_clip());
  const int64_t most = std::clamp<int64_t>((end - begin) / (2 * workers), 1, kGradCaptions);
  std::vector<int64_t> cuts{begin};
  int64_t largest = 0;
  for (int64_t j = begin + 1; j <= end; ++j) {
    if (j < end && j - cuts.back() < most && (first[j + 1] - first[cuts.back()]) * width <= kGradSums) continue;
    largest = std::max(largest, first[j] - first[cuts.back()]);
    cuts.push_back(j);
  }
  const int64_t blocks = static_cast<int64_t>(cuts.size()) - 1, parts = parts_for(blocks, workers, problem.spans);
  const auto audio = make_buffer<float>(workers * kGradFrames * width);
  const auto sums = make_buffer<float>(workers * 2 * largest * width);
  parallel_for(blocks * parts, workers, [&](int64_t item, int worker) {
    const int64_t block = item / parts, part = item % parts;
    problem.kernels.token_grad({&op, winners, problem.frames.view(), problem.tokens.view(), cuts[block],
                                cuts[block + 1], problem.spans * part / parts, problem.spans * (part + 1) / parts, grad,
                                kGradFrames, audio.get() + worker * kGradFrames * width,
                                sums.get() + (2 * worker) * largest * width,
                                sums.get() + (2 * worker + 1) * largest * width, grad_text});
  });
}

}  // namespace

void max_mean_forward(const MaxMean& op, const Winners& winners, float* sim) {
  std::fill_n(sim, op.pairs ? op.audio.count : op.audio.count * op.text.count, 0.0f);
  score(Problem{op}, winners, 0, op.text.count, nullptr, sim);
}

void max_mean_backward(const MaxMean& op, const Winners& winners, int64_t workspace, const float* grad,
                       void* grad_audio, void* grad_text) {
  const Problem problem{op};
  const int64_t all_tokens = problem.tokens.first.back(), width = problem.spans * kSpan, captions = op.text.count;
  clear_padding(op.audio, op.d * problem.element, grad_audio);
  clear_padding(op.text, op.d * problem.element, grad_text);

  const auto text = make_buffer<float>(all_tokens * width);
  parallel_for(captions, problem.workers(all_tokens), [&](int64_t j, int) {
    problem.kernels.pack_spans(op.text.rows, op.dtype, op.d, problem.tokens.row.data(), problem.tokens.first[j],
                               problem.tokens.first[j + 1], all_tokens, text.get());
  });

  const bool saved = winners.index != nullptr;
  const int64_t group = saved || op.pairs
                            ? captions
                            : std::clamp<int64_t>(workspace / (op.audio.total * winners.bytes), 1, captions);
  const auto index = make_buffer<char>(saved ? 0 : (op.pairs ? 1 : group) * op.audio.total * winners.bytes);
  const auto carried = make_buffer<float>(group < captions ? problem.frames.row.size() * width : 0);
  for (int64_t begin = 0; begin < captions; begin += group) {
    const int64_t end = std::min(begin + group, captions);
    const Winners found = saved ? winners : Winners{index.get(), winners.bytes, begin};
    if (!saved) score(problem, found, begin, end, grad, nullptr);
    frame_gradients(problem, found, text.get(), begin, end, grad, group < captions ? carried.get() : nullptr,
                    grad_audio);
    token_gradients(problem, found, begin, end, grad, grad_text);
  }
}

}  // namespace atk
