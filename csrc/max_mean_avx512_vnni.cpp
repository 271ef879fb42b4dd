// Kernels for AVX-512 with VNNI: compiled with these flags if the compiler has them, called only on CPUs that have
// them.
#include "max_mean.h"

#if defined(__AVX512VNNI__)
#define ATK_LANES 16
#define ATK_TILE_VECTORS 2
#define ATK_TILE_TOKENS 12
#include "kernel_table.h"
#include "max_mean_screen.h"

ATK_KERNEL_TABLE(kAvx512VnniKernels, "avx512_vnni", &kScreenTable)
#else
const atk::Kernels* const atk::kAvx512VnniKernels = nullptr;
#endif
