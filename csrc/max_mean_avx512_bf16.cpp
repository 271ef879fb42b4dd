// AVX-512 with BF16 and VNNI: compiled with these flags where the compiler has them, called only where the CPU does.
#include "max_mean.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define ATK_LANES 16
#define ATK_TILE_VECTORS 2
#define ATK_TILE_TOKENS 12
#include "kernel_table.h"

namespace atk {
static const Kernels kTable = ATK_KERNEL_TABLE("avx512_bf16");
const Kernels* const kAvx512Bf16Kernels = &kTable;
}  // namespace atk
#else
const atk::Kernels* const atk::kAvx512Bf16Kernels = nullptr;
#endif
