// Detects the instruction sets of the CPU and holds the selected kernels.
#include "isa.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace atk {
namespace {

struct Candidate {
  const Kernels* kernels;  // may be null
  bool runs_here;
};

#if defined(__x86_64__)
// A bit of EAX of CPUID leaf 7.1; __builtin_cpu_supports of older compilers does not know these features.
bool cpu_has(int bit) {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> bit & 1);
}
#elif defined(__aarch64__) && defined(__APPLE__)
bool cpu_has(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
#endif

// The kernels of this processor's family, best first.
std::vector<Candidate> candidates() {
#if defined(__x86_64__)
  constexpr int kAvxVnniBit = 4, kAvx512Bf16Bit = 5;
  __builtin_cpu_init();
  // These checks include whether the operating system saves the wide registers.
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx512_vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if defined(ATK_EVEX_VNNI)
  const bool avx2_vnni = avx512_vnni;
#else
  const bool avx2_vnni = avx2 && cpu_has(kAvxVnniBit);
#endif
  return {{kAvx512Bf16Kernels, avx512_vnni && cpu_has(kAvx512Bf16Bit)},
          {kAvx512VnniKernels, avx512_vnni},
          {kAvx512Kernels, avx512},
          {kAvx2VnniKernels, avx2_vnni},
          {kAvx2Kernels, avx2}};
#elif defined(__aarch64__) && defined(__linux__)
  const bool dot = getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
  constexpr unsigned long kBf16 = 1 << 14;  // HWCAP2_BF16, which older headers lack
  return {{kNeonBf16Kernels, dot && (getauxval(AT_HWCAP2) & kBf16)}, {kNeonDotKernels, dot}};
#elif defined(__aarch64__) && defined(__APPLE__)
  const bool dot = cpu_has("hw.optional.arm.FEAT_DotProd");
  return {{kNeonBf16Kernels, dot && cpu_has("hw.optional.arm.FEAT_BF16")}, {kNeonDotKernels, dot}};
#else
  return {};
#endif
}

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> supported;
  for (const Candidate& candidate : candidates())
    if (candidate.kernels && candidate.runs_here) supported.push_back(candidate.kernels);
  supported.push_back(kBaselineKernels);
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
