// InfoNCE on the CPU: what there is to do besides products and exponentials of whole blocks.
#include "info_nce.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace atk {
namespace {

// The column of the block where the positive of the block's row i is, or -1 if it lies in another block.
int64_t positive_column(const LogitBlock& block, int64_t i) {
  const int64_t column = block.positive[block.row + i] - block.column;
  return 0 <= column && column < block.logits.columns ? column : -1;
}

bool all_at_least(const ExponentialSums& sums, float smallest) {
  return !sums.values ||
         std::all_of(sums.values, sums.values + sums.size, [&](float sum) { return sum >= smallest; });
}

// `lse` of a sum, but relative to the logit of a positive that dominates it.
float relative_to(float positive_logit, float of_positive, float sum, float lse) {
  const float ratio = sum / of_positive;
  return ratio < 1e3f ? positive_logit + std::log(ratio) : lse;
}

void extend(const LogSumExps& lse, float* low, float* high, bool* is_nan) {
  for (int64_t i = 0; i < (lse.values ? lse.size : 0); ++i) {
    *low = std::min(*low, lse.values[i]);
    *high = std::max(*high, lse.values[i]);
    *is_nan |= std::isnan(lse.values[i]);
  }
}

std::vector<float> factors(const LogSumExps& lse, float shift) {
  std::vector<float> result(lse.values ? lse.size : 0);
  for (size_t i = 0; i < result.size(); ++i) result[i] = lse.grads[i] * std::exp(shift - lse.values[i]);
  return result;
}

}  // namespace

void add_block(const LogitBlock& block, float shift, int threads, float* row_sums, float* column_sums,
               float* positive_logits) {
  Logits logits = block.logits;
  logits.shift = shift;
  add_exponentials(logits, threads, row_sums + block.row, column_sums ? column_sums + block.column : nullptr);
  for (int64_t i = 0; i < (block.positive ? logits.rows : 0); ++i) {
    const int64_t j = positive_column(block, i);
    if (j >= 0) positive_logits[block.row + i] = logits.values[i * logits.stride + j];
  }
}

bool log_sum_exps(const ExponentialSums& rows, const ExponentialSums& columns, const int64_t* positive,
                  const float* positive_logits, float shift, float smallest) {
  if (!all_at_least(rows, smallest) || !all_at_least(columns, smallest)) return false;
  const std::vector<float> row_sums(rows.values, rows.values + rows.size);
  const std::vector<float> column_sums(columns.values, columns.values + (columns.values ? columns.size : 0));
  for (size_t i = 0; i < row_sums.size(); ++i) rows.values[i] = std::log(row_sums[i]) + shift;
  for (size_t j = 0; j < column_sums.size(); ++j) columns.values[j] = std::log(column_sums[j]) + shift;
  if (!positive) return true;
  std::vector<float> of_positives(rows.size);  // computed like the sums, which are equal to it if nothing else counts
  add_exponentials({positive_logits, rows.size, 1, 1, shift}, 1, of_positives.data(), nullptr);
  for (int64_t i = 0; i < rows.size; ++i) {
    rows.values[i] = relative_to(positive_logits[i], of_positives[i], row_sums[i], rows.values[i]);
    if (!columns.values) continue;
    const int64_t j = positive[i];
    if (j < 0 || j >= columns.size) throw std::out_of_range("positive must lie within the rows of text");
    columns.values[j] = relative_to(positive_logits[i], of_positives[i], column_sums[j], columns.values[j]);
  }
  return true;
}

LogitGradients::LogitGradients(const LogSumExps& rows, const LogSumExps& columns, const float* positive_grads)
    : rows_(rows), columns_(columns), positive_grads_(positive_grads) {}

bool LogitGradients::set_shift(float largest) {
  float low = rows_.values[0], high = low;
  bool is_nan = false;
  extend(rows_, &low, &high, &is_nan);
  extend(columns_, &low, &high, &is_nan);
  if (is_nan || !(high - low <= 2 * largest)) return false;
  shift_ = std::max(-low, high) <= largest ? 0 : (low + high) / 2;
  row_factors_ = factors(rows_, shift_);
  column_factors_ = factors(columns_, shift_);
  return true;
}

double LogitGradients::write(const LogitBlock& block, int threads, void* out, Dtype out_dtype,
                               int64_t out_stride) const {
  Logits logits = block.logits;
  logits.shift = shift_;
  std::vector<int64_t> pair_columns(block.positive ? logits.rows : 0, -1);
  std::vector<float> pair_gradients(pair_columns.size());
  for (size_t i = 0; i < pair_columns.size(); ++i) {
    const int64_t row = block.row + i, j = positive_column(block, i);
    if (j < 0) continue;
    const float logit = logits.values[i * logits.stride + j];
    float gradient = rows_.grads[row] * std::exp(logit - rows_.values[row]);
    if (columns_.values) {
      const int64_t column = block.column + j;
      gradient += columns_.grads[column] * std::exp(logit - columns_.values[column]);
    }
    pair_columns[i] = j;
    pair_gradients[i] = gradient + positive_grads_[row];
  }
  const GradientParts parts{row_factors_.data() + block.row,
                            columns_.values ? column_factors_.data() + block.column : nullptr,
                            block.positive ? pair_columns.data() : nullptr, pair_gradients.data()};
  return logit_gradients(logits, parts, threads, out, out_dtype, out_stride);
}

}  // namespace atk
