// Register tiles of the bfloat16 product: lanes are right rows, left rows are broadcast, as frames and tokens are in the
// forward of the max-mean similarity.
#pragma once

#include "max_mean_score.h"

namespace atk {
namespace {

// Writes V vectors of right rows [words][V * kLanes] times K left rows [words][K] to out [K, stride], `count` columns.
template <int V, int K>
void product_tile(const float* right, const float* left, int64_t words, float factor, int64_t count, float* out,
                  int64_t stride) {
  Vec sum[K][V] = {};
  for (int64_t c = 0; c < words; ++c, right += V * kLanes, left += K) {
    Vec lanes[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) lanes[v] = load(right + v * kLanes);
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[k][v] = Bfloat16Dot::multiply_add(sum[k][v], lanes[v], left[k]);
  }
  for (int k = 0; k < K; ++k, out += stride) {
    float row[V * kLanes];
    for (int v = 0; v < V; ++v) store(row + v * kLanes, factor * sum[k][v]);
    std::memcpy(out, row, count * sizeof *row);
  }
}

struct ProductTile {
  using Function = void (*)(const float*, const float*, int64_t, float, int64_t, float*, int64_t);
  template <int V, int K>
  static constexpr Function run = product_tile<V, K>;
};

// The functions of ProductKernels.

void pack_left(const ProductTask& task, int64_t tile) {
  const int64_t begin = tile * kTileTokens, count = min(kTileTokens, task.left_rows - begin);
  pack_rows(static_cast<const BFloat16*>(task.left), task.order + begin, count, task.D, count,
            task.packed_left + begin * words_per_row<BFloat16>(task.D));
}

void multiply(const ProductTask& task, int64_t panel, float* packed_right) {
  const int64_t words = words_per_row<BFloat16>(task.D);
  const int64_t begin = panel * kBlock, count = min(kBlock, task.right_rows - begin);
  const int64_t vectors = (count + kLanes - 1) / kLanes;
  pack_rows(static_cast<const BFloat16*>(task.right), task.order + begin, count, task.D, vectors * kLanes,
            packed_right);
  for (int64_t row = 0; row < task.left_rows; row += kTileTokens) {
    const int64_t rows = min(kTileTokens, task.left_rows - row);
    Tiles<ProductTile>::width[vectors - 1][rows - 1](packed_right, task.packed_left + row * words, words, task.factor,
                                                     count, task.out + row * task.stride + begin, task.stride);
  }
}

const ProductKernels kProductTable = {kTileTokens, kBlock, pack_left, multiply};

}  // namespace
}  // namespace atk
