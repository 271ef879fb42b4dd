// Kernels for AVX2 with FMA: compiled with these flags, called only on CPUs that have them.
#include "max_mean.h"

#if defined(__x86_64__)
#define ATK_LANES 8
#define ATK_TILE_VECTORS 2
#define ATK_TILE_TOKENS 6
#include "kernel_table.h"

ATK_KERNEL_TABLE(kAvx2Kernels, "avx2", nullptr)
#else
const atk::Kernels* const atk::kAvx2Kernels = nullptr;
#endif
