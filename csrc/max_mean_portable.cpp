// Kernels for any CPU: the compiler maps vectors of four floats to SSE2, NEON, or scalar registers.
#define ATK_LANES 4
#if defined(__aarch64__)
#define ATK_TILE_VECTORS 4
#define ATK_BASELINE "neon"
#else
#define ATK_TILE_VECTORS 2
#define ATK_BASELINE "portable"
#endif
#define ATK_TILE_TOKENS 6
#include "kernel_table.h"

ATK_KERNEL_TABLE(kBaselineKernels, ATK_BASELINE, nullptr)
