// SPDX-License-Identifier: Apache-2.0
// What the swap-in kernel needs of CUDA, for a host compiler: the threads of a block are fibers, which meet at each
// collective of their warp and at each barrier of their block. Shared memory lies between guards.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Index {
  int x;
};
inline Index threadIdx{0}, blockIdx{0}, blockDim{0}, gridDim{0};

namespace emulation {

// A place where `expected` threads meet. Values have two turns, so that none is overwritten before all have read it.
struct Meeting {
  int expected = 0, arrived = 0;
  unsigned turn = 0;
  int values[2][32];
};

struct Block {
  static constexpr std::size_t STACK = 64 * 1024, GUARD = 1 << 20;
  static constexpr unsigned char POISON = 0xA5;

  std::vector<ucontext_t> fibers;
  std::vector<char> done;
  std::vector<Meeting> warps;
  Meeting barrier;
  ucontext_t scheduler;
  std::function<void()> body;
  std::vector<unsigned char> memory;
  bool moved = false;
};
inline Block* block = nullptr;

inline char* shared() {
  return reinterpret_cast<char*>(block->memory.data()) + Block::GUARD;
}

// Returns the turn in which this thread met the others.
inline unsigned meet(Meeting& at) {
  const unsigned turn = at.turn;
  const int me = threadIdx.x;
  if (++at.arrived == at.expected) {
    at.arrived = 0;
    ++at.turn;
    block->moved = true;
  }
  while (at.turn == turn) {
    swapcontext(&block->fibers[me], &block->scheduler);
  }
  return turn & 1;
}

inline const int* exchange(int value) {
  Meeting& warp = block->warps[threadIdx.x / 32];
  warp.values[warp.turn & 1][threadIdx.x % 32] = value;
  return warp.values[meet(warp)];
}

inline void enter() {
  const int me = threadIdx.x;
  block->body();
  block->done[me] = true;
  block->moved = true;
  swapcontext(&block->fibers[me], &block->scheduler);
}

// One block. False: the guards of its shared memory are damaged, or its threads wait for each other.
inline bool run_block(int threads, std::size_t shared_bytes, bool backwards, std::function<void()> body) {
  Block here;
  block = &here;
  here.body = std::move(body);
  here.fibers.resize(threads);
  here.done.assign(threads, false);
  here.warps.resize(threads / 32);
  for (Meeting& warp : here.warps) warp.expected = 32;
  here.barrier.expected = threads;
  here.memory.assign(shared_bytes + 2 * Block::GUARD, Block::POISON);
  std::unique_ptr<char[]> stacks(new char[threads * Block::STACK]);
  for (int i = 0; i < threads; ++i) {
    getcontext(&here.fibers[i]);
    here.fibers[i].uc_stack.ss_sp = stacks.get() + i * Block::STACK;
    here.fibers[i].uc_stack.ss_size = Block::STACK;
    here.fibers[i].uc_link = nullptr;
    makecontext(&here.fibers[i], enter, 0);
  }
  int left = threads;
  while (left > 0) {
    here.moved = false;
    for (int i = 0; i < threads; ++i) {
      const int next = backwards ? threads - 1 - i : i;
      if (here.done[next]) continue;
      threadIdx.x = next;
      swapcontext(&here.scheduler, &here.fibers[next]);
      left -= here.done[next];
    }
    if (!here.moved) return false;
  }
  const auto poisoned = [](unsigned char byte) { return byte == Block::POISON; };
  const auto begin = here.memory.begin(), end = here.memory.end();
  return std::all_of(begin, begin + Block::GUARD, poisoned) && std::all_of(end - Block::GUARD, end, poisoned);
}

}  // namespace emulation

inline void __syncthreads() {
  emulation::meet(emulation::block->barrier);
}

inline unsigned __ballot_sync(unsigned, bool value) {
  const int* values = emulation::exchange(value);
  unsigned mask = 0;
  for (int i = 0; i < 32; ++i) mask |= unsigned(values[i] != 0) << i;
  return mask;
}

inline int __shfl_sync(unsigned, int value, int from) {
  return emulation::exchange(value)[from];
}

inline int __shfl_up_sync(unsigned, int value, int distance) {
  const int lane = threadIdx.x % 32;
  const int* values = emulation::exchange(value);
  return values[lane >= distance ? lane - distance : lane];
}

inline int __popc(unsigned mask) {
  return __builtin_popcount(mask);
}

inline int atomicCAS(int* at, int expected, int value) {
  const int old = *at;
  if (old == expected) *at = value;
  return old;
}

using std::max;
using std::min;

// Names of code that the emulated sizes never reach.
namespace device::hisparse {
template <typename... Arguments>
void transfer_item(Arguments...) {
  throw std::logic_error("DeepSeek V4's layout is not emulated");
}
}  // namespace device::hisparse
