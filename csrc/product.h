// Matrix product of bfloat16 rows with float32 results, which PyTorch's product on the CPU would round to bfloat16.
#pragma once

#include <cstdint>

namespace atk {

// Whether the selected instruction set multiplies pairs of bfloat16 channels.
bool multiplies_bfloat16();

// Writes out[m, n] = factor * <left[m], right[n]>, out is [left_rows, right_rows] with `stride` floats from row to row.
// The rows have D channels and are contiguous. Requires multiplies_bfloat16().
void bfloat16_product(const void* left, const void* right, int64_t left_rows, int64_t right_rows, int64_t D,
                      float factor, int threads, float* out, int64_t stride);

}  // namespace atk
