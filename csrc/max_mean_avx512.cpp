// Kernels for AVX-512 (F, BW, DQ, VL): compiled with these flags, called only on CPUs that have them.
#include "max_mean.h"

#if defined(__x86_64__)
#define ATK_LANES 16
#define ATK_TILE_VECTORS 2
#define ATK_TILE_TOKENS 12
#include "kernel_table.h"

ATK_KERNEL_TABLE(kAvx512Kernels, "avx512", nullptr)
#else
const atk::Kernels* const atk::kAvx512Kernels = nullptr;
#endif
