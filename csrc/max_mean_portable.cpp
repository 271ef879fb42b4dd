// Kernels for any CPU: the compiler maps vectors of four floats to SSE2, NEON, or scalar registers.
#define ATK_LANES 4
#if defined(__aarch64__)
#define ATK_TILE_VECTORS 4
#else
#define ATK_TILE_VECTORS 2
#endif
#define ATK_TILE_TOKENS 6
#include "kernel_table.h"

const atk::Kernels atk::kPortableKernels = ATK_KERNEL_TABLE("portable", nullptr);
