// Kernels for AVX2 with FMA: compiled with these flags, called only on CPUs that have them.
#if defined(__x86_64__)
#define ATK_LANES 8
#define ATK_TILE_VECTORS 2
#define ATK_TILE_TOKENS 6
#include "kernel_table.h"

const atk::Kernels atk::kAvx2Kernels = ATK_KERNEL_TABLE("avx2", nullptr);
#endif
