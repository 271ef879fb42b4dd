// Rows divided by their Euclidean norms, and the gradient of that.
#pragma once

#include "max_mean.h"

namespace atk {

// unit = rows / ||rows|| [total, d] and 1 / ||rows|| [total]; 0 where the mask is false or the norm is below 1e-12.
void normalize_rows(const void* rows, Dtype dtype, const bool* mask, int64_t total, int64_t d, int threads, void* unit,
                    float* inverse_norm);

// grad_rows = inverse_norm * (grad - <grad, unit> unit), 0 where inverse_norm is 0.
void normalize_rows_backward(const void* grad, const void* unit, Dtype dtype, const float* inverse_norm, int64_t total,
                             int64_t d, int threads, void* grad_rows);

}  // namespace atk
