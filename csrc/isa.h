// Choice of the compiled instruction set and of the screening mode, both process-wide.
#pragma once

#include <string>
#include <vector>

#include "max_mean.h"

namespace atk {

std::vector<std::string> available_isas();  // the ones this CPU supports, best first
void set_isa(const std::string& name);      // throws std::invalid_argument if it is not available
const Kernels& kernels();                   // of the best available instruction set, or of the one that set_isa chose

// When the forward screens with int8, on instruction sets that support it: if a gain is expected (automatic), in every
// call that can be screened (always), or never.
enum class Screening { automatic, always, never };
void set_screening(const std::string& mode);  // "auto", "always", or "never"; throws std::invalid_argument otherwise
Screening screening();

}  // namespace atk
