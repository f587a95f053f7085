// SPDX-License-Identifier: Apache-2.0
//
// Stands in for the tree's sgl_kernel/utils.cuh where a host compiler builds a kernel: enough of CUDA to run its source
// on a CPU. A block's threads are fibers of one thread. They run one after another up to the next __syncthreads or
// shuffle, in an order that a seed chooses, and so do the blocks: a missing barrier or a block that waits for another
// shows as a wrong result or as a deadlock that is reported. Loads and stores check their alignment.

#pragma once

#include <sgl_kernel/utils.h>

#include <dlpack/dlpack.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads)
#define __shared__ static
#define SGL_DEVICE inline

struct dim3 {
  uint32_t x, y, z;
  dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}

// Since 0.5.18 SGLang's helpers are in a namespace of its own (HELPERS_IN_SGLANG).
namespace sglang {}
using namespace sglang;

namespace emulation {

constexpr uint32_t kWarp = 32;
constexpr std::size_t kStackBytes = 64 * 1024;

enum class State { kReady, kAtBarrier, kAtShuffle, kDone };

struct Fiber {
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
  ucontext_t entry;
  jmp_buf resume;
  bool started = false;
  State state = State::kReady;
  uint32_t thread;
  uint64_t sent, received;
  uint32_t distance;
};

inline std::vector<std::unique_ptr<Fiber>> fibers;
inline Fiber* current;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline std::string failure;
inline int64_t launches = 0;
inline std::mt19937 order{0};
inline bool shuffled = false;

inline void yield(State state) {
  current->state = state;
  if (!_setjmp(current->resume)) _longjmp(scheduler, 1);
}

[[noreturn]] inline void fail(const char* what) {
  failure = what;
  _longjmp(scheduler, 1);
}

/// A fiber outlives the blocks: after each it waits for the next.
inline void fiber_main() {
  for (;;) {
    body();
    yield(State::kDone);
  }
}

inline void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = dim3(fiber.thread);
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  setcontext(&fiber.entry);
}

inline void make_fibers(uint32_t count) {
  fibers.clear();
  for (uint32_t t = 0; t < count; ++t) {
    auto& fiber = *fibers.emplace_back(std::make_unique<Fiber>());
    fiber.thread = t;
    getcontext(&fiber.entry);
    fiber.entry.uc_stack.ss_sp = fiber.stack.get();
    fiber.entry.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber.entry, fiber_main, 0);
  }
}

/// Lets waiting threads go on whose warp or block has arrived; if shuffled, one warp at a time, so that warps get ahead
/// of one another. False if there are none.
inline bool release() {
  std::vector<std::size_t> warps;
  for (std::size_t warp = 0; warp < fibers.size(); warp += kWarp) {
    const auto at_shuffle = [](const auto& fiber) { return fiber->state == State::kAtShuffle; };
    if (std::all_of(fibers.begin() + warp, fibers.begin() + warp + kWarp, at_shuffle)) warps.push_back(warp);
  }
  if (shuffled && !warps.empty()) warps = {warps[order() % warps.size()]};
  for (const auto warp : warps) {
    for (uint32_t lane = 0; lane < kWarp; ++lane) {
      auto& fiber = *fibers[warp + lane];
      fiber.received = lane < fiber.distance ? fiber.sent : fibers[warp + lane - fiber.distance]->sent;
    }
    for (uint32_t lane = 0; lane < kWarp; ++lane)
      fibers[warp + lane]->state = State::kReady;
  }
  const auto at_barrier = [](const auto& fiber) { return fiber->state == State::kAtBarrier; };
  if (!std::all_of(fibers.begin(), fibers.end(), at_barrier)) return !warps.empty();
  for (auto& fiber : fibers)
    fiber->state = State::kReady;
  return true;
}

inline void run_block() {
  for (auto& fiber : fibers)
    fiber->state = State::kReady;
  std::vector<uint32_t> turns(fibers.size());
  std::iota(turns.begin(), turns.end(), 0);
  do {
    if (shuffled) std::shuffle(turns.begin(), turns.end(), order);
    for (const auto t : turns) {
      if (fibers[t]->state != State::kReady) continue;
      resume(*fibers[t]);
      if (!failure.empty()) return;
    }
  } while (release());
  const auto done = [](const auto& fiber) { return fiber->state == State::kDone; };
  if (!std::all_of(fibers.begin(), fibers.end(), done)) failure = "deadlock: not all threads came to a barrier";
}

inline void run_grid(dim3 grid, dim3 block, std::function<void()> kernel) {
  ++launches;
  if (fibers.size() != block.x) make_fibers(block.x);
  body = std::move(kernel);
  gridDim = grid;
  blockDim = block;
  std::vector<uint32_t> blocks(grid.x);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (shuffled) std::shuffle(blocks.begin(), blocks.end(), order);
  for (const auto b : blocks) {
    blockIdx = dim3(b);
    run_block();
    if (!failure.empty()) {
      fibers.clear();  // some stand in the middle of the kernel
      body = nullptr;
      host::panic({}, std::exchange(failure, {}));
    }
  }
  body = nullptr;  // it is code of a library that may be gone before this variable is
}

/// Seed 0: threads and blocks run in order.
inline void set_order(int64_t seed) {
  shuffled = seed != 0;
  order.seed(seed);
}

inline int64_t count_launches() {
  return launches;
}

template <typename T>
void check_aligned(const T* address) {
  if (reinterpret_cast<uintptr_t>(address) % alignof(T) != 0) fail("misaligned address");
}

}  // namespace emulation

[[noreturn]] inline void __trap() {
  emulation::fail("trap");
}

inline void __syncthreads() {
  emulation::yield(emulation::State::kAtBarrier);
}

inline uint32_t __shfl_up_sync(uint32_t mask, uint32_t value, uint32_t distance) {
  if (mask != 0xffffffffu) emulation::fail("only whole warps are emulated");
  emulation::current->sent = value;
  emulation::current->distance = distance;
  emulation::yield(emulation::State::kAtShuffle);
  return emulation::current->received;
}

#ifdef HELPERS_IN_SGLANG
namespace sglang {
#endif

namespace device {

inline constexpr auto kWarpThreads = 32u;
inline constexpr auto kFullMask = 0xffffffffu;

template <std::integral T, std::integral U>
constexpr auto div_ceil(T a, U b) {
  return (a + b - 1) / b;
}

template <typename T>
T load_as(const void* data, int64_t offset = 0) {
  emulation::check_aligned(static_cast<const T*>(data) + offset);
  return static_cast<const T*>(data)[offset];
}

template <typename T>
void store_as(void* data, std::type_identity_t<T> value, int64_t offset = 0) {
  emulation::check_aligned(static_cast<T*>(data) + offset);
  static_cast<T*>(data)[offset] = value;
}

}  // namespace device

namespace host {

struct LaunchKernel {
  LaunchKernel(dim3 grid, dim3 block, DLDevice) : grid(grid), block(block) {}

  template <typename Params>
  void operator()(void (*kernel)(Params), const std::type_identity_t<Params>& params) const {
    emulation::run_grid(grid, block, [kernel, &params] { kernel(params); });
  }

  dim3 grid, block;
};

}  // namespace host

#ifdef HELPERS_IN_SGLANG
}  // namespace sglang
#endif
