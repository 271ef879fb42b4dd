// Rows of unit length and their gradient: threads over blocks of rows.
#include "normalize.h"

#include <algorithm>

#include "isa.h"
#include "parallel.h"

namespace atk {
namespace {

constexpr int64_t kElementsPerTask = 64 << 10;

// Calls body(begin, end) for blocks of `total` rows.
template <class Body>
void over_rows(int64_t total, int64_t d, int threads, const Body& body) {
  const int64_t block = std::max<int64_t>(kElementsPerTask / std::max<int64_t>(d, 1), 1);
  parallel_for((total + block - 1) / block, std::max(threads, 1),
               [&](int64_t item, int) { body(item * block, std::min((item + 1) * block, total)); });
}

}  // namespace

void normalize_rows(const void* rows, Dtype dtype, const bool* mask, int64_t total, int64_t d, int threads, void* unit,
                    float* inverse_norm) {
  const Kernels& kernels = atk::kernels();
  over_rows(total, d, threads, [&](int64_t begin, int64_t end) {
    kernels.normalize(rows, dtype, mask, begin, end, d, unit, inverse_norm);
  });
}

void normalize_rows_backward(const void* grad, const void* unit, Dtype dtype, const float* inverse_norm, int64_t total,
                             int64_t d, int threads, void* grad_rows) {
  const Kernels& kernels = atk::kernels();
  over_rows(total, d, threads, [&](int64_t begin, int64_t end) {
    kernels.normalize_grad(grad, unit, dtype, inverse_norm, begin, end, d, grad_rows);
  });
}

}  // namespace atk
