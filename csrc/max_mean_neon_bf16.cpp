// Kernels for NEON with BF16 and dot products: compiled with these flags if the compiler has them, called only on CPUs
// that have them.
#include "max_mean.h"

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(__ARM_FEATURE_DOTPROD)
#define ATK_LANES 4
#define ATK_TILE_VECTORS 4
#define ATK_TILE_TOKENS 6
#define ATK_BFLOAT16_DOT 1
#include "kernel_table.h"
#include "max_mean_screen.h"

ATK_KERNEL_TABLE(kNeonBf16Kernels, "neon_bf16", &kScreenTable)
#else
const atk::Kernels* const atk::kNeonBf16Kernels = nullptr;
#endif
