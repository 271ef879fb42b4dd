// AVX-512 (F, BW, DQ, VL): compiled with these flags and called only where the CPU has them.
#if defined(__x86_64__)
#define ATK_LANES 16
#define ATK_TILE_VECTORS 2
#define ATK_TILE_TOKENS 12
#include "max_mean_grad.h"
#include "max_mean_score.h"

const atk::Kernels atk::kAvx512Kernels = {"avx512", kLanes,     kBlock,     pack_caption,
                                          score,    widen_rows, frame_grad, token_grad};
#endif
