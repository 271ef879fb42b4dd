// Exponentials of logits, parallel over blocks of rows.
#include "exponentials.h"

#include <algorithm>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace atk {
namespace {

constexpr int64_t kRows = 32;          // of a block
constexpr int64_t kColumns = 4 << 10;  // whose partial sums one task adds up

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

void add_exponentials(const Logits& logits, int threads, float* row_sums, float* column_sums) {
  const Kernels& kernels = atk::kernels();
  const int64_t blocks = ceil_divide(logits.rows, kRows);
  const int workers = std::max(threads, 1);
  Buffer<float> partial = make_buffer<float>(column_sums ? blocks * logits.columns : 0);
  parallel_for(blocks, workers, [&](int64_t block, int) {
    float* sums = column_sums ? partial.get() + block * logits.columns : nullptr;
    if (sums) std::fill_n(sums, logits.columns, 0.0f);
    kernels.add_exponentials(logits, block * kRows, std::min((block + 1) * kRows, logits.rows), row_sums, sums);
  });
  if (!column_sums) return;
  parallel_for(ceil_divide(logits.columns, kColumns), workers, [&](int64_t task, int) {
    const int64_t end = std::min((task + 1) * kColumns, logits.columns);
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t j = task * kColumns; j < end; ++j) column_sums[j] += partial[block * logits.columns + j];
  });
}

double logit_gradients(const Logits& logits, const GradientParts& gradients, int threads, void* out, Dtype out_dtype,
                       int64_t out_stride) {
  const Kernels& kernels = atk::kernels();
  const int64_t blocks = ceil_divide(logits.rows, kRows);
  std::vector<double> sums(blocks);
  parallel_for(blocks, std::max(threads, 1), [&](int64_t block, int) {
    const int64_t end = std::min((block + 1) * kRows, logits.rows);
    sums[block] = kernels.logit_gradients(logits, gradients, block * kRows, end, out, out_dtype, out_stride);
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

}  // namespace atk
