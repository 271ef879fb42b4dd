// AVX2 with FMA: compiled with these flags and called only where the CPU has them.
#if defined(__x86_64__)
#define ATK_LANES 8
#define ATK_TILE_VECTORS 2
#define ATK_TILE_TOKENS 6
#include "max_mean_grad.h"
#include "max_mean_score.h"

const atk::Kernels atk::kAvx2Kernels = {"avx2", kLanes,     kBlock,     pack_caption,
                                        score,  widen_rows, frame_grad, token_grad};
#endif
