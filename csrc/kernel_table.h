// Table of all kernels, for the instruction set that the including file is compiled for; `screen` may be null.
#pragma once

#include "max_mean_grad.h"
#include "max_mean_score.h"
#include "normalize_rows.h"

#define ATK_KERNEL_TABLE(name, screen)                                                                 \
  {name, kBlock, kBfloat16PerWord, pack_caption, score, pack_spans, frame_grad, token_grad, normalize, \
   normalize_grad, screen}
