// One call to max-mean similarity: the lists of valid rows, and how the work is split among threads.
#pragma once

#include <algorithm>
#include <vector>

#include "isa.h"
#include "max_mean.h"

namespace atk {
namespace {

constexpr double kOperationsPerThread = 1 << 20;  // for less work, starting a thread costs more than it saves
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kSharedFrames = 256;  // most frames in a chunk of several clips; one short clip leaves lanes empty

// The vectors behind a ValidRows.
struct RowLists {
  std::vector<int32_t> source_row;
  std::vector<int64_t> offset;

  explicit RowLists(const Sequences& sequences) : offset(sequences.num_sequences + 1) {
    const bool* mask = sequences.mask;
    source_row.reserve(mask ? std::count(mask, mask + sequences.num_rows, true) : sequences.num_rows);
    for (int64_t s = 0; s < sequences.num_sequences; ++s) {
      for (int32_t r = sequences.cu_seqlens[s]; r < sequences.cu_seqlens[s + 1]; ++r)
        if (!mask || mask[r]) source_row.push_back(r);
      offset[s + 1] = static_cast<int64_t>(source_row.size());
    }
  }

  ValidRows view() const { return {source_row.data(), offset.data()}; }
  int64_t count(int64_t s) const { return offset[s + 1] - offset[s]; }

  int64_t longest() const {
    int64_t rows = 0;
    for (size_t s = 1; s < offset.size(); ++s) rows = std::max(rows, offset[s] - offset[s - 1]);
    return rows;
  }
};

// Number of parts into which to split each of `items`, so that all workers stay busy.
int64_t parts_per_item(int64_t items, int workers, int64_t max_parts) {
  const int64_t parts = workers == 1 ? 1 : (kTasksPerThread * workers + items - 1) / std::max<int64_t>(items, 1);
  return std::clamp<int64_t>(parts, 1, std::max<int64_t>(max_parts, 1));
}

// What the steps of a call share.
struct Problem {
  const MaxMean& op;
  const Kernels& kernels = atk::kernels();
  const RowLists frames{op.audio}, tokens{op.text};
  const int64_t element_bytes = op.dtype == Dtype::float32 ? 4 : 2;
  const int64_t spans = (op.D + kSpan - 1) / kSpan;
  const int64_t longest_caption = tokens.longest();
  const Screening mode = screening();
  const ScreenKernels* const screen = uses_screening() ? kernels.screen : nullptr;

  bool uses_screening() const {
    return mode != Screening::never && kernels.screen &&
           kernels.screen->applies(op, frames.offset.back(), longest_caption, mode == Screening::always);
  }

  int workers(double operations_per_channel) const {
    const double worthwhile = 1 + 2 * operations_per_channel * op.D / kOperationsPerThread;
    return static_cast<int>(std::min<double>(std::max(op.threads, 1), worthwhile));
  }

  double pairs_per_clip() const { return op.pairs ? 1 : static_cast<double>(op.text.num_sequences); }

  // The clips to score with the captions [begin, end), in chunks of at most `length` frames of one clip, or of at most
  // `shared` frames of several.
  std::vector<Chunk> chunks(int64_t begin, int64_t end, int64_t length, int64_t shared = 0) const {
    std::vector<Chunk> result;
    for (int64_t i = op.pairs ? begin : 0; i < (op.pairs ? end : op.audio.num_sequences); ++i) {
      const int64_t clip_begin = frames.offset[i], clip_end = frames.offset[i + 1];
      if (!result.empty() && clip_end - result.back().begin <= shared) {
        result.back().clips = i + 1 - result.back().clip;
        result.back().end = clip_end;
        continue;
      }
      for (int64_t r = clip_begin; r < clip_end; r += length)
        result.push_back({i, 1, r, std::min(r + length, clip_end)});
    }
    return result;
  }
};

}  // namespace
}  // namespace atk
