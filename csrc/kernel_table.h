// Table of all kernels, for the instruction set that the including file is compiled for.
#pragma once

#include "exponential_rows.h"
#include "max_mean_grad.h"
#include "max_mean_score.h"
#include "normalize_rows.h"

#if ATK_BFLOAT16_DOT
#include "product_tiles.h"
#define ATK_PRODUCT &kProductTable
#else
#define ATK_PRODUCT nullptr
#endif

// Defines atk::variable; `screen` may be null.
#define ATK_KERNEL_TABLE(variable, name, screen)                                                                     \
  namespace atk {                                                                                                    \
  static const Kernels kTable = {name, kBlock, kBfloat16PerWord, pack_caption, score, pack_spans, frame_grad,        \
                                 token_grad, normalize, normalize_grad, add_exponentials, logit_gradients, screen,   \
                                 ATK_PRODUCT};                                                                       \
  const Kernels* const variable = &kTable;                                                                           \
  }
