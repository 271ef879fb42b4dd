// Exponentials of a matrix of logits: their sums along both axes, and the gradients of log-sum-exps. One pass each.
#pragma once

#include "max_mean.h"

namespace atk {

// A matrix whose rows are contiguous, with `stride` floats from row to row.
struct Logits {
  const float* values;
  int64_t rows, columns, stride;
  float shift;  // subtracted before the exponential; logit - shift is at most 88
};

// Adds e^(logit - shift) to row_sums [rows] and, unless it is null, to column_sums [columns]. The order of summation
// does not depend on the number of threads.
void add_exponentials(const Logits& logits, int threads, float* row_sums, float* column_sums);

// What the gradient of a logit is made of.
struct GradientParts {
  const float* row_factors;     // [rows]
  const float* column_factors;  // [columns]; null: zeros
  const int64_t* pair_columns;  // [rows]: the column whose gradient is given, out of range for none; or null
  const float* pair_gradients;  // [rows]: that gradient
};

// Writes e^(logit - shift) * (row_factor + column_factor) to out [rows, columns], whose rows are contiguous with
// `out_stride` elements from row to row. In float32, out may be the memory of the logits. Returns the sum of the
// products of logits and gradients, before the gradients are rounded.
double logit_gradients(const Logits& logits, const GradientParts& gradients, int threads, void* out, Dtype out_dtype,
                       int64_t out_stride);

}  // namespace atk
