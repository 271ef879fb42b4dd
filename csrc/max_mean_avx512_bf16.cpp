// Kernels for AVX-512 with BF16 and VNNI: compiled with these flags if the compiler has them, called only on CPUs that
// have them.
#include "max_mean.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define ATK_LANES 16
#define ATK_TILE_VECTORS 2
#define ATK_TILE_TOKENS 12
#include "kernel_table.h"
#include "max_mean_screen.h"

namespace atk {
static const ScreenKernels kScreenTable = {screening_applies, screened_caption_offset, ScreenScratch::bytes,
                                           prepare_caption, screen};
static const Kernels kTable = ATK_KERNEL_TABLE("avx512_bf16", &kScreenTable);
const Kernels* const kAvx512Bf16Kernels = &kTable;
}  // namespace atk
#else
const atk::Kernels* const atk::kAvx512Bf16Kernels = nullptr;
#endif
