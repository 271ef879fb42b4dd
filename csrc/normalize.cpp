// Row normalization and its gradient, parallel over blocks of rows.
#include "normalize.h"

#include <algorithm>

#include "isa.h"
#include "parallel.h"

namespace atk {
namespace {

constexpr int64_t kElementsPerTask = 64 << 10;

// Calls body(begin, end) for blocks of rows that cover [0, num_rows).
template <class Body>
void for_each_block(int64_t num_rows, int64_t D, int threads, const Body& body) {
  const int64_t block = std::max<int64_t>(kElementsPerTask / std::max<int64_t>(D, 1), 1);
  parallel_for((num_rows + block - 1) / block, std::max(threads, 1),
               [&](int64_t item, int) { body(item * block, std::min((item + 1) * block, num_rows)); });
}

}  // namespace

void normalize_rows(const void* rows, Dtype dtype, const bool* mask, int64_t num_rows, int64_t D, int threads,
                    void* unit, float* inverse_norm) {
  const Kernels& kernels = atk::kernels();
  for_each_block(num_rows, D, threads, [&](int64_t begin, int64_t end) {
    kernels.normalize(rows, dtype, mask, begin, end, D, unit, inverse_norm);
  });
}

void normalize_rows_backward(const void* grad, const void* unit, Dtype dtype, const float* inverse_norm,
                             int64_t num_rows, int64_t D, int threads, void* grad_rows) {
  const Kernels& kernels = atk::kernels();
  for_each_block(num_rows, D, threads, [&](int64_t begin, int64_t end) {
    kernels.normalize_grad(grad, unit, dtype, inverse_norm, begin, end, D, grad_rows);
  });
}

}  // namespace atk
