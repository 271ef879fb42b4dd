// Max-mean similarity on the CPU: lists the valid rows, splits the work into tasks, and hands them to the kernels.
// The split never changes a result: wherever a sum is split, its parts are added in an order set by the shapes alone.
#include "max_mean.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "max_mean_problem.h"
#include "parallel.h"

namespace atk {
namespace {

constexpr int64_t kChunkWords = 96 << 10;      // packed frames that stay in a 1 MiB L2 cache
constexpr int64_t kCaptionElements = 2 << 20;  // packed captions that stay in the last-level cache
constexpr int64_t kGradFrames = 256;           // frames that the backward processes at a time
constexpr int64_t kGradCaptions = 64;          // captions in the largest block of a token_grad task
constexpr int64_t kGradSums = 256 << 10;       // floats in the largest block, unless a single caption has more

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The captions [begin, end), packed for the forward in rows of `words`, and prepared for screening if the call screens.
struct CaptionPack {
  const int64_t begin, end;
  Buffer<float> tokens;
  Buffer<Magnitudes> magnitudes;
  Buffer<char> screened;

  CaptionPack(const Problem& problem, int64_t begin, int64_t end, int64_t words, int workers) : begin(begin), end(end) {
    const MaxMean& op = problem.op;
    const RowLists& rows = problem.tokens;
    const ScreenKernels* screen = problem.screen;
    const int64_t captions = end - begin;
    const int64_t token_count = rows.offset[end] - rows.offset[begin];
    tokens = make_buffer<float>(token_count * words);
    magnitudes = make_buffer<Magnitudes>(captions);
    screened = make_buffer<char>(screen ? screen->caption_offset(op.D, captions, token_count) : 0);
    parallel_for(captions, workers, [&](int64_t j, int) {
      const int64_t tokens_before = rows.offset[begin + j] - rows.offset[begin];
      float* packed = tokens.get() + tokens_before * words;
      magnitudes[j] = problem.kernels.pack_caption(op, rows.view(), begin + j, packed);
      if (screen && rows.count(begin + j))
        screen->prepare_caption(op, rows.view(), begin + j, magnitudes[j],
                                screened.get() + screen->caption_offset(op.D, j, tokens_before));
    });
  }

  PackedCaptions view(const RowLists& rows) const { return {tokens.get(), magnitudes.get(), rows.view(), begin, end}; }
};

// Whether most pairs with the captions [begin, end) have gradient 0. A pair is then left out more often than a chunk of
// several clips.
bool mostly_zero(const float* grad, const MaxMean& op, int64_t begin, int64_t end) {
  int64_t zeros = 0;
  for (int64_t i = 0; i < op.audio.num_sequences; ++i, grad += op.text.num_sequences)
    zeros += std::count(grad + begin, grad + end, 0.0f);
  return 2 * zeros > op.audio.num_sequences * (end - begin);
}

// Packs the captions [begin, end) together and scores them. If `sim` is null, only the winners are written.
void score_group(const Problem& problem, const Winners& winners, int64_t begin, int64_t end, const float* grad,
                 float* sim) {
  const MaxMean& op = problem.op;
  const Kernels& kernels = problem.kernels;
  const ScreenKernels* screen = problem.screen;
  const RowLists& frames = problem.frames;
  const int64_t per_word = op.dtype == Dtype::bfloat16 ? kernels.bfloat16_per_word : 1;
  const int64_t words = (op.D + per_word - 1) / per_word;
  const int64_t captions = end - begin;
  const int64_t token_count = problem.tokens.offset[end] - problem.tokens.offset[begin];
  const double scores = static_cast<double>(frames.source_row.size()) * token_count;
  const int workers = problem.workers(op.pairs ? scores / op.audio.num_sequences : scores);
  const CaptionPack pack(problem, begin, end, words, workers);

  const int64_t length = round_up(std::clamp<int64_t>(kChunkWords / words, 1, op.audio.num_rows), kernels.block);
  const bool shares = !op.pairs && !screen && !(grad && mostly_zero(grad, op, begin, end));
  const int64_t shared = shares ? std::min(kSharedFrames, length) : 0;
  const std::vector<Chunk> chunks = problem.chunks(begin, end, length, shared);
  const int64_t chunk_count = static_cast<int64_t>(chunks.size());
  std::vector<int64_t> first_sum(chunk_count + 1);  // of each chunk
  for (int64_t c = 0; c < chunk_count; ++c) first_sum[c + 1] = first_sum[c] + chunks[c].clips * captions;
  const auto packed_frames = make_buffer<float>(workers * length * words);
  const auto best_scores = make_buffer<float>(workers * (length + kernels.block));
  const auto sums = make_buffer<float>(first_sum.back());
  const int64_t scratch_bytes = screen ? screen->scratch_bytes(length, problem.longest_caption, op.D) : 0;
  const auto scratch = make_buffer<char>(workers * scratch_bytes);
  const int64_t parts = parts_per_item(chunk_count, workers, op.pairs ? 1 : captions);
  parallel_for(chunk_count * parts, workers, [&](int64_t item, int worker) {
    const int64_t part = item % parts;
    ScoreTask task{};
    task.op = &op;
    task.winners = winners;
    task.captions = pack.view(problem.tokens);
    task.frames = frames.view();
    task.chunk = chunks[item / parts];
    task.caption_begin = op.pairs ? task.chunk.clip : begin + captions * part / parts;
    task.caption_end = op.pairs ? task.chunk.clip + 1 : begin + captions * (part + 1) / parts;
    task.grad = grad;
    task.packed_frames = packed_frames.get() + worker * length * words;
    task.best_scores = best_scores.get() + worker * (length + kernels.block);
    task.sums = sums.get() + first_sum[item / parts];
    task.screen = {pack.screened.get(), problem.longest_caption, scratch.get() + worker * scratch_bytes,
                   problem.mode == Screening::always};
    (screen ? screen->score : kernels.score)(task);
  });
  if (!sim) return;
  for (int64_t c = 0; c < chunk_count; ++c) {
    const float* clip_sums = sums.get() + first_sum[c];
    for (int64_t i = chunks[c].clip; i < chunks[c].clip + chunks[c].clips; ++i, clip_sums += captions) {
      if (!frames.count(i)) continue;
      const float clip_frames = static_cast<float>(frames.count(i));
      if (op.pairs)
        sim[i] += clip_sums[i - begin] / clip_frames;
      else
        for (int64_t j = 0; j < captions; ++j)
          sim[i * op.text.num_sequences + begin + j] += clip_sums[j] / clip_frames;
    }
  }
}

// Scores the captions [begin, end) in groups that fit the cache.
void score(const Problem& problem, const Winners& winners, int64_t begin, int64_t end, const float* grad, float* sim) {
  const std::vector<int64_t>& offset = problem.tokens.offset;
  while (begin < end) {
    int64_t stop = begin + 1;
    while (stop < end && (offset[stop + 1] - offset[begin]) * problem.op.D <= kCaptionElements) ++stop;
    score_group(problem, winners, begin, stop, grad, sim);
    begin = stop;
  }
}

// Zeroes the gradients of the rows that the mask excludes.
void clear_padding(const Sequences& sequences, int64_t row_bytes, void* grad) {
  for (int64_t r = 0; r < sequences.num_rows && sequences.mask; ++r)
    if (!sequences.mask[r]) std::memset(static_cast<char*>(grad) + r * row_bytes, 0, row_bytes);
}

// Adds the gradients of all frames from the captions [begin, end). `carried` keeps the sums from one range of
// captions to the next: chunk after chunk, each [spans, frames of the chunk, kSpan]; null if there is only one range.
void frame_gradients(const Problem& problem, const Winners& winners, const void* packed_text, int64_t begin,
                     int64_t end, const float* grad, float* carried, void* grad_audio) {
  const MaxMean& op = problem.op;
  const std::vector<Chunk> chunks = problem.chunks(0, op.audio.num_sequences, kGradFrames);
  const int64_t chunk_count = static_cast<int64_t>(chunks.size());
  const int64_t width = problem.spans * kSpan;
  const int workers = problem.workers(problem.frames.source_row.size() * problem.pairs_per_clip());
  const int64_t parts = parts_per_item(chunk_count, workers, problem.spans);
  const auto sums = make_buffer<float>(carried ? 0 : workers * kGradFrames * width);
  parallel_for(chunk_count * parts, workers, [&](int64_t item, int worker) {
    const int64_t part = item % parts;
    FrameGradTask task{};
    task.op = &op;
    task.winners = winners;
    task.frames = problem.frames.view();
    task.tokens = problem.tokens.view();
    task.chunk = chunks[item / parts];
    task.caption_begin = begin;
    task.caption_end = end;
    task.span_begin = problem.spans * part / parts;
    task.span_end = problem.spans * (part + 1) / parts;
    task.grad = grad;
    task.packed_text = packed_text;
    task.sums = carried ? carried + task.chunk.begin * width : sums.get() + worker * kGradFrames * width;
    task.first_range = begin == 0;
    task.last_range = end == op.text.num_sequences;
    task.grad_audio = grad_audio;
    problem.kernels.frame_grad(task);
  });
}

// Cuts the captions [begin, end) into blocks for token_grad; returns the starts of the blocks and, last, `end`.
std::vector<int64_t> caption_blocks(const std::vector<int64_t>& offset, int64_t begin, int64_t end, int workers,
                                    int64_t width) {
  const int64_t max_captions = std::clamp<int64_t>((end - begin) / (2 * workers), 1, kGradCaptions);
  std::vector<int64_t> cuts{begin};
  for (int64_t j = begin + 1; j <= end; ++j) {
    const int64_t start = cuts.back();
    if (j < end && j - start < max_captions && (offset[j + 1] - offset[start]) * width <= kGradSums) continue;
    cuts.push_back(j);
  }
  return cuts;
}

// Writes the gradients of the tokens of the captions [begin, end).
void token_gradients(const Problem& problem, const Winners& winners, int64_t begin, int64_t end, const float* grad,
                     void* grad_text) {
  const MaxMean& op = problem.op;
  const std::vector<int64_t>& offset = problem.tokens.offset;
  const int64_t width = problem.spans * kSpan;
  const int workers = problem.workers(problem.frames.source_row.size() * problem.pairs_per_clip());
  const std::vector<int64_t> cuts = caption_blocks(offset, begin, end, workers, width);
  const int64_t blocks = static_cast<int64_t>(cuts.size()) - 1;
  int64_t block_tokens = 0;  // of the largest block
  for (int64_t b = 0; b < blocks; ++b) block_tokens = std::max(block_tokens, offset[cuts[b + 1]] - offset[cuts[b]]);
  const int64_t parts = parts_per_item(blocks, workers, problem.spans);
  const auto packed_frames = make_buffer<float>(workers * kGradFrames * width);
  const auto sums = make_buffer<float>(workers * 2 * block_tokens * width);
  parallel_for(blocks * parts, workers, [&](int64_t item, int worker) {
    const int64_t block = item / parts, part = item % parts;
    TokenGradTask task{};
    task.op = &op;
    task.winners = winners;
    task.frames = problem.frames.view();
    task.tokens = problem.tokens.view();
    task.caption_begin = cuts[block];
    task.caption_end = cuts[block + 1];
    task.span_begin = problem.spans * part / parts;
    task.span_end = problem.spans * (part + 1) / parts;
    task.grad = grad;
    task.chunk_frames = kGradFrames;
    task.packed_frames = packed_frames.get() + worker * kGradFrames * width;
    task.partial = sums.get() + (2 * worker) * block_tokens * width;
    task.total = sums.get() + (2 * worker + 1) * block_tokens * width;
    task.grad_text = grad_text;
    problem.kernels.token_grad(task);
  });
}

}  // namespace

void max_mean_forward(const MaxMean& op, const Winners& winners, float* sim) {
  std::fill_n(sim, op.pairs ? op.audio.num_sequences : op.audio.num_sequences * op.text.num_sequences, 0.0f);
  score(Problem{op}, winners, 0, op.text.num_sequences, nullptr, sim);
}

void max_mean_backward(const MaxMean& op, const Winners& winners, int64_t workspace, const float* grad,
                       void* grad_audio, void* grad_text) {
  const Problem problem{op};
  const int64_t all_tokens = problem.tokens.offset.back();
  const int64_t width = problem.spans * kSpan;
  const int64_t captions = op.text.num_sequences;
  clear_padding(op.audio, op.D * problem.element_bytes, grad_audio);
  clear_padding(op.text, op.D * problem.element_bytes, grad_text);

  const auto packed_text = make_buffer<float>(all_tokens * width);
  parallel_for(captions, problem.workers(all_tokens), [&](int64_t j, int) {
    problem.kernels.pack_spans(op.text.rows, op.dtype, op.D, problem.tokens.source_row.data(), problem.tokens.offset[j],
                               problem.tokens.offset[j + 1], all_tokens, packed_text.get());
  });

  const bool saved = winners.index != nullptr;
  const int64_t row_bytes = op.audio.num_rows * winners.index_bytes;  // of the winner indices of a caption
  const int64_t group_size = saved || op.pairs ? captions : std::clamp<int64_t>(workspace / row_bytes, 1, captions);
  const auto index = make_buffer<char>(saved ? 0 : (op.pairs ? 1 : group_size) * row_bytes);
  const auto carried = make_buffer<float>(group_size < captions ? problem.frames.source_row.size() * width : 0);
  for (int64_t begin = 0; begin < captions; begin += group_size) {
    const int64_t end = std::min(begin + group_size, captions);
    const Winners group_winners = saved ? winners : Winners{index.get(), winners.index_bytes, begin};
    if (!saved) score(problem, group_winners, begin, end, grad, nullptr);
    frame_gradients(problem, group_winners, packed_text.get(), begin, end, grad,
                    group_size < captions ? carried.get() : nullptr, grad_audio);
    token_gradients(problem, group_winners, begin, end, grad, grad_text);
  }
}

}  // namespace atk
