// Matrix product of bfloat16 rows, parallel over panels of the right rows.
#include "product.h"

#include <algorithm>
#include <numeric>

#include "isa.h"
#include "parallel.h"

namespace atk {

bool multiplies_bfloat16() { return kernels().product != nullptr; }

void bfloat16_product(const void* left, const void* right, int64_t left_rows, int64_t right_rows, int64_t D,
                      float factor, int threads, float* out, int64_t stride) {
  const ProductKernels& product = *kernels().product;
  const int64_t words = (D + 1) / 2;
  const int64_t tiles = (left_rows + product.tile - 1) / product.tile;
  const int64_t panels = (right_rows + product.panel - 1) / product.panel;
  const int workers = std::max(threads, 1);
  Buffer<float> packed_left = make_buffer<float>(words * left_rows);
  Buffer<float> packed_right = make_buffer<float>(words * product.panel * workers);
  std::vector<int32_t> order(std::max(left_rows, right_rows));
  std::iota(order.begin(), order.end(), 0);
  const ProductTask task{left, right, order.data(), left_rows, right_rows, D, factor, packed_left.get(), out, stride};
  parallel_for(tiles, workers, [&](int64_t tile, int) { product.pack_left(task, tile); });
  parallel_for(panels, workers, [&](int64_t panel, int worker) {
    product.multiply(task, panel, packed_right.get() + worker * words * product.panel);
  });
}

}  // namespace atk
