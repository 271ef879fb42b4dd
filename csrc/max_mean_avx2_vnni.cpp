// Kernels for AVX2 with FMA and AVX-VNNI: compiled with these flags if the compiler has them, called only on CPUs that
// have them.
#include "max_mean.h"

#if defined(__AVXVNNI__)
#define ATK_LANES 8
#define ATK_TILE_VECTORS 2
#define ATK_TILE_TOKENS 6
#include "kernel_table.h"
#include "max_mean_screen.h"

ATK_KERNEL_TABLE(kAvx2VnniKernels, "avx2_vnni", &kScreenTable)
#else
const atk::Kernels* const atk::kAvx2VnniKernels = nullptr;
#endif
