// InfoNCE's log-sum-exps of the logits S along both axes, and the gradient of S.
#pragma once

#include <vector>

#include "exponentials.h"

namespace atk {

// A block of S.
struct LogitBlock {
  Logits logits;            // their shift is unused
  int64_t row, column;      // of S, where the block starts
  const int64_t* positive;  // for each row of S, its positive's column of S; null: there are no positives
};

// Sums of e^(S - shift) along one axis, which become log-sum-exps.
struct ExponentialSums {
  float* values;  // null: this axis is not needed
  int64_t size;
};

// Adds e^(S - shift) of the block to row_sums [rows of S] and, unless it is null, to column_sums [columns of S], as
// add_exponentials does. Writes the logits of the positives in the block to positive_logits [rows of S].
void add_block(const LogitBlock& block, float shift, int threads, float* row_sums, float* column_sums,
               float* positive_logits);

// Turns sums into log-sum-exps. Where a positive has at least a thousandth of the probability, they are its logit plus
// a small logarithm, so no digits are lost. Returns false if a sum is NaN or below `smallest`; nothing is written then.
// Throws std::out_of_range if a positive is not a column.
bool log_sum_exps(const ExponentialSums& rows, const ExponentialSums& columns, const int64_t* positive,
                  const float* positive_logits, float shift, float smallest);

// Log-sum-exps of S along one axis, and the gradients with respect to them.
struct LogSumExps {
  const float* values;  // null: this axis has no gradient
  const float* grads;
  int64_t size;
};

// dS_ij = grad_rows_i e^(S_ij - rows_i) + grad_columns_j e^(S_ij - columns_j) + [j = positive_i] grad_positive_i. One
// exponential per element serves both axes: e^(S_ij - shift) times a factor per row plus a factor per column. The
// entries of positives are computed term by term.
class LogitGradients {
 public:
  LogitGradients(const LogSumExps& rows, const LogSumExps& columns, const float* positive_grads);

  // Chooses the shift so that the exponents of the factors are at most `largest` in magnitude; false if there is none.
  bool set_shift(float largest);

  // Writes dS of a block, as logit_gradients does, and returns the same sum. Requires a shift.
  double write(const LogitBlock& block, int threads, void* out, Dtype out_dtype, int64_t out_stride) const;

 private:
  LogSumExps rows_, columns_;
  const float* positive_grads_;
  float shift_ = 0;
  std::vector<float> row_factors_, column_factors_;
};

}  // namespace atk
