// Any CPU: the compiler maps vectors of four floats to SSE2, NEON or plain registers.
#define ATK_LANES 4
#if defined(__aarch64__)
#define ATK_TILE_VECTORS 4
#else
#define ATK_TILE_VECTORS 2
#endif
#define ATK_TILE_TOKENS 6
#include "max_mean_grad.h"
#include "max_mean_score.h"

const atk::Kernels atk::kPortableKernels = {"portable", kLanes,     kBlock,     pack_caption,
                                            score,      widen_rows, frame_grad, token_grad};
