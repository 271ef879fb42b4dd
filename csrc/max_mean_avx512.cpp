// Kernels for AVX-512 (F, BW, DQ, VL): compiled with these flags, called only on CPUs that have them.
#if defined(__x86_64__)
#define ATK_LANES 16
#define ATK_TILE_VECTORS 2
#define ATK_TILE_TOKENS 12
#include "kernel_table.h"

const atk::Kernels atk::kAvx512Kernels = ATK_KERNEL_TABLE("avx512", nullptr);
#endif
