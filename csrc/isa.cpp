#include "isa.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace atk {
namespace {

#if defined(__x86_64__)
bool cpu_has_avx512_bf16() {  // compilers that cannot name it in __builtin_cpu_supports are still in use
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}
#endif

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // These also ask whether the operating system saves the wide registers.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    if (kAvx512Bf16Kernels && __builtin_cpu_supports("avx512vnni") && cpu_has_avx512_bf16())
      found.push_back(kAvx512Bf16Kernels);
    found.push_back(&kAvx512Kernels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kAvx2Kernels);
#endif
  found.push_back(&kPortableKernels);
  return found;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{runnable().front()};
  return kernels;
}

std::atomic<Screening> screening_mode{Screening::automatic};

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* kernels : runnable()) names.push_back(kernels->name);
  return names;
}

void set_isa(const std::string& name) {
  std::string names;
  for (const Kernels* kernels : runnable()) {
    if (name == kernels->name) {
      chosen() = kernels;
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
    throw std::invalid_argument("screening mode '" + mode + "' is none of: auto, always, never");
}

Screening screening() { return screening_mode; }

const Kernels& kernels() { return *chosen(); }

}  // namespace atk
