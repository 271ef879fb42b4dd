// Choice of the compiled instruction set and of the screening mode, both process-wide.
#pragma once

#include <string>
#include <vector>

#include "max_mean.h"

namespace atk {

std::vector<std::string> available_isas();  // the ones this CPU supports, best first
void set_isa(const std::string& name);      // throws std::invalid_argument unless available
const Kernels& kernels();                   // of the best available instruction set, or of the one set by set_isa

// When the forward screens with int8, if the instruction set can: when a gain is expected, whenever possible, or never.
enum class Screening { automatic, always, never };
void set_screening(const std::string& mode);  // "auto", "always" or "never"; throws std::invalid_argument otherwise
Screening screening();

}  // namespace atk
