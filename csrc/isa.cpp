// Detects the instruction sets of the CPU and holds the selected kernels.
#include "isa.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace atk {
namespace {

#if defined(__x86_64__)
bool cpu_has_avx512_bf16() {  // __builtin_cpu_supports of older compilers does not know this feature
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1);
}
#endif

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> supported;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // These checks include whether the operating system saves the wide registers.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    if (kAvx512Bf16Kernels && __builtin_cpu_supports("avx512vnni") && cpu_has_avx512_bf16())
      supported.push_back(kAvx512Bf16Kernels);
    supported.push_back(&kAvx512Kernels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) supported.push_back(&kAvx2Kernels);
#endif
  supported.push_back(&kPortableKernels);
  return supported;
}

std::atomic<const Kernels*>& selected_kernels() {
  static std::atomic<const Kernels*> kernels{supported_kernels().front()};
  return kernels;
}

std::atomic<Screening> screening_mode{Screening::automatic};

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* kernels : supported_kernels()) names.push_back(kernels->name);
  return names;
}

void set_isa(const std::string& name) {
  std::string names;
  for (const Kernels* kernels : supported_kernels()) {
    if (name == kernels->name) {
      selected_kernels() = kernels;
      return;
    }
    names += names.empty() ? kernels->name : std::string(", ") + kernels->name;
  }
  throw std::invalid_argument("instruction set '" + name + "' is not available here; available: " + names);
}

void set_screening(const std::string& mode) {
  if (mode == "auto")
    screening_mode = Screening::automatic;
  else if (mode == "always")
    screening_mode = Screening::always;
  else if (mode == "never")
    screening_mode = Screening::never;
  else
    throw std::invalid_argument("screening mode must be 'auto', 'always', or 'never', got '" + mode + "'");
}

Screening screening() { return screening_mode; }

const Kernels& kernels() { return *selected_kernels(); }

}  // namespace atk
