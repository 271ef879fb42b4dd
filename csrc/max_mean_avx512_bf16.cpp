// Kernels for AVX-512 with BF16 and VNNI: compiled with these flags if the compiler has them, called only on CPUs that
// have them.
#include "max_mean.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define ATK_LANES 16
#define ATK_TILE_VECTORS 2
#define ATK_TILE_TOKENS 12
#define ATK_BFLOAT16_DOT 1
#include "kernel_table.h"
#include "max_mean_screen.h"

ATK_KERNEL_TABLE(kAvx512Bf16Kernels, "avx512_bf16", &kScreenTable)
#else
const atk::Kernels* const atk::kAvx512Bf16Kernels = nullptr;
#endif
