// Rows divided by their Euclidean norms, and the gradient:
//
//   unit = rows / ||rows||        grad_rows = (grad - <grad, unit> unit) / ||rows||
#pragma once

#include "max_mean.h"

namespace atk {

// Writes unit = rows / ||rows|| [num_rows, D] and inverse_norm = 1 / ||rows|| [num_rows]; both are 0 where the mask is
// false or the norm is below 1e-12.
void normalize_rows(const void* rows, Dtype dtype, const bool* mask, int64_t num_rows, int64_t D, int threads,
                    void* unit, float* inverse_norm);

// Writes grad_rows = inverse_norm * (grad - <grad, unit> unit), 0 where inverse_norm is 0.
void normalize_rows_backward(const void* grad, const void* unit, Dtype dtype, const float* inverse_norm,
                             int64_t num_rows, int64_t D, int threads, void* grad_rows);

}  // namespace atk
