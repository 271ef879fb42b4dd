// Kernels for NEON with dot products: compiled with these flags if the compiler has them, called only on CPUs that have
// them.
#include "max_mean.h"

#if defined(__ARM_FEATURE_DOTPROD)
#define ATK_LANES 4
#define ATK_TILE_VECTORS 4
#define ATK_TILE_TOKENS 6
#include "kernel_table.h"
#include "max_mean_screen.h"

ATK_KERNEL_TABLE(kNeonDotKernels, "neon_dot", &kScreenTable)
#else
const atk::Kernels* const atk::kNeonDotKernels = nullptr;
#endif
