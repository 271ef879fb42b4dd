// Which of the compiled instruction sets runs.
#pragma once

#include <string>
#include <vector>

#include "max_mean.h"

namespace atk {

std::vector<std::string> available_isas();  // that this CPU runs, best first
void set_isa(const std::string& name);      // throws std::invalid_argument unless available
const Kernels& kernels();                   // of the best available instruction set, or of the one that was set

}  // namespace atk
