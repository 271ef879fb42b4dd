// Work sharing with threads that live for one call: nothing survives a fork, and nothing competes with OpenMP.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace atk {

// Calls body(item, worker) once for every item in [0, items), worker in [0, workers). The body must not throw.
template <class Body>
void parallel_for(int64_t items, int workers, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto run = [&](int worker) {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(item, worker);
  };
  std::vector<std::thread> others;
  others.reserve(workers);
  try {
    for (int worker = 1; worker < workers && worker < items; ++worker) others.emplace_back(run, worker);
  } catch (const std::system_error&) {
    // No further thread is to be had: those that started share the work.
  }
  run(0);
  for (std::thread& other : others) other.join();
}

struct AlignedDelete {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};

// Uninitialised array on a cache-line boundary.
template <class T>
using Buffer = std::unique_ptr<T[], AlignedDelete>;

template <class T>
Buffer<T> make_buffer(int64_t size) {
  return Buffer<T>(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t{64})));
}

}  // namespace atk
