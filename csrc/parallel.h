// Parallel loops over the OpenMP threads of the process (PyTorch's) if it has any, else over threads that live for one
// call; and cache-aligned buffers.
#pragma once

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace atk {

using OpenMpParallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// OpenMP's entry point, or null. It is looked up at run time because linking could load a second OpenMP runtime.
// Its threads would have to share cores with PyTorch's idle threads, which spin.
inline OpenMpParallel openmp_parallel() {
  static const pid_t loaded_by = getpid();
  static const auto parallel = reinterpret_cast<OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return getpid() == loaded_by ? parallel : nullptr;  // OpenMP's threads do not survive a fork; the child would hang
}

template <class Run>
void run_on_new_threads(int workers, const Run& run) {
  std::vector<std::thread> threads;
  threads.reserve(workers);
  try {
    for (int worker = 1; worker < workers; ++worker) threads.emplace_back(run);
  } catch (const std::system_error&) {
    // The system has no more threads: the ones that started share the work.
  }
  run();
  for (std::thread& thread : threads) thread.join();
}

// Calls body(item, worker) once for every item in [0, items), with worker in [0, workers). The body must not throw.
template <class Body>
void parallel_for(int64_t items, int workers, const Body& body) {
  constexpr unsigned kWholeTeam = 0;  // of the size that PyTorch's loops ask for: a change would end and start threads
  workers = static_cast<int>(workers < items ? workers : items);
  std::atomic<int64_t> next{0};
  std::atomic<int> started{0};
  auto run = [&] {
    const int worker = started.fetch_add(1, std::memory_order_relaxed);
    if (worker >= workers) return;
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(item, worker);
  };
  if (workers <= 1) {
    run();
  } else if (const OpenMpParallel parallel = openmp_parallel()) {
    parallel([](void* data) { (*static_cast<decltype(run)*>(data))(); }, &run, kWholeTeam, 0);
  } else {
    run_on_new_threads(workers, run);
  }
}

constexpr std::align_val_t kCacheLine{64};

struct AlignedDelete {
  void operator()(void* memory) const { ::operator delete(memory, kCacheLine); }
};

// Uninitialized array that starts on a cache line.
template <class T>
using Buffer = std::unique_ptr<T[], AlignedDelete>;

template <class T>
Buffer<T> make_buffer(int64_t size) {
  return Buffer<T>(static_cast<T*>(::operator new(size * sizeof(T), kCacheLine)));
}

}  // namespace atk
