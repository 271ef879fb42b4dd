// Which of the compiled instruction sets runs, and whether its forward screens.
#pragma once

#include <string>
#include <vector>

#include "max_mean.h"

namespace atk {

std::vector<std::string> available_isas();  // that this CPU runs, best first
void set_isa(const std::string& name);      // throws std::invalid_argument unless available
const Kernels& kernels();                   // of the best available instruction set, or of the one that was set

// Whether the forward screens with int8, where the instruction set can: when the data promise a gain, whenever it is
// possible, or not at all.
enum class Screening { automatic, always, never };
void set_screening(const std::string& mode);  // "auto", "always" or "never"; throws std::invalid_argument otherwise
Screening screening();

}  // namespace atk
