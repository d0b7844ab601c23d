// Runs the CUDA kernels of src/ops/csrc/cuda for one type, INTERNIMAGE_TYPE, on the CPU
// (cuda_runtime.h tells how); called through ctypes.
#include "cuda_runtime.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "backward.cuh"
#include "forward.cuh"

Index threadIdx, blockIdx, gridDim;

namespace internimage::cuda {
alignas(16) unsigned char shared_memory[99 * 1024];  // the most that sm_86 gives a block
}

namespace emulator {
namespace {

using internimage::cuda::kThreads;
using internimage::cuda::shared_memory;

enum class State { kReady, kAtBlockBarrier, kAtWarpExchange, kDone };

struct Fiber {
  ucontext_t entry;
  jmp_buf place;  // where it waits
  std::vector<char> stack = std::vector<char>(64 * 1024);
  bool has_started;
  State state;
  int kind;
  unsigned turns;  // exchanges so far
};

std::vector<Fiber> fibers(kThreads);
double exchanged[2][kThreads];
jmp_buf scheduler;
int current;
std::function<void()> kernel;

// Jumps, and not swapcontext, which asks the operating system each time.
void suspend(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  if (_setjmp(fiber.place) == 0) _longjmp(scheduler, 1);
}

void run_fiber() {
  kernel();
  suspend(State::kDone);
}

void resume() {
  if (_setjmp(scheduler) != 0) return;
  Fiber& fiber = fibers[current];
  if (fiber.has_started) _longjmp(fiber.place, 1);
  fiber.has_started = true;
  setcontext(&fiber.entry);
}

bool release(int begin, int end, State state) {
  const auto waits = [&](const Fiber& fiber) {
    return fiber.state == state && fiber.kind == fibers[begin].kind;
  };
  if (!std::all_of(fibers.begin() + begin, fibers.begin() + end, waits)) return false;
  for (int i = begin; i < end; ++i) fibers[i].state = State::kReady;
  return true;
}

const char* run_block(bool is_backwards) {
  std::memset(shared_memory, 0xCD, sizeof(shared_memory));
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.entry);
    fiber.entry.uc_stack.ss_sp = fiber.stack.data();
    fiber.entry.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.entry, run_fiber, 0);
    fiber.has_started = false;
    fiber.state = State::kReady;
    fiber.kind = 0;
    fiber.turns = 0;
  }
  while (true) {
    for (int i = 0; i < kThreads; ++i) {
      current = is_backwards ? kThreads - 1 - i : i;
      if (fibers[current].state != State::kReady) continue;
      threadIdx.x = current;
      resume();
    }
    const auto is_done = [](const Fiber& fiber) { return fiber.state == State::kDone; };
    if (std::all_of(fibers.begin(), fibers.end(), is_done)) return nullptr;
    bool is_released = release(0, kThreads, State::kAtBlockBarrier);
    for (int warp = 0; warp < kThreads; warp += 32) {
      is_released |= release(warp, warp + 32, State::kAtWarpExchange);
    }
    if (!is_released) return "threads of a block or warp wait at different places";
  }
}

}  // namespace

void wait_for_block() {
  fibers[current].kind = 0;
  suspend(State::kAtBlockBarrier);
}

const double* exchange(double value, int kind) {
  Fiber& fiber = fibers[current];
  const int self = current;
  // Two buffers: a thread may give its next value before another has read this one.
  double* buffer = exchanged[fiber.turns++ % 2];
  buffer[self] = value;
  fiber.kind = kind;
  suspend(State::kAtWarpExchange);
  return buffer + self / 32 * 32;
}

const char* run_grid(const internimage::cuda::Plan& plan, size_t shared, bool is_backwards,
                     std::function<void()> body) {
  if (shared > sizeof(shared_memory)) return "too much shared memory";
  kernel = std::move(body);
  gridDim = {plan.blocks_per_image, plan.images_y, plan.images_z};
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        const char* error = run_block(is_backwards);
        if (error != nullptr) return error;
      }
    }
  }
  return nullptr;
}

}  // namespace emulator

// The fields of one call, in the order of the ctypes structure in cuda_emulator.py.
struct Request {
  internimage::Problem problem;
  const void* input;
  void *offset, *mask;
  int64_t offset_stride, mask_stride, multiprocessors;
  bool is_offset_wide, is_mask_wide;
  bool wants_vectors, is_backwards;
  void* output;
  const void* grad;
  void *grad_input, *grad_offset, *grad_mask;
  const double* unit;
};

using namespace internimage::cuda;
using T = INTERNIMAGE_TYPE;

static Call<T> to_call(const Request& request) {
  Call<T> call = make_call<T>(request.problem);
  call.input = static_cast<const T*>(request.input);
  call.offset = make_side<T>(request.offset, request.offset_stride, request.is_offset_wide);
  call.mask = make_side<T>(request.mask, request.mask_stride, request.is_mask_wide);
  return call;
}

// Both return null, or what went wrong.
extern "C" const char* emulate_forward(const Request* request) {
  const Call<T> call = to_call(*request);
  const char* error = nullptr;
  choose_kernel(call, request->wants_vectors, [&](auto channels, auto fixed_points) {
    constexpr int vector = channels, points = fixed_points;
    const Plan plan = make_plan(call, vector, static_cast<int>(request->multiprocessors));
    const auto kernel = [&] {
      forward_kernel<T, vector, points>(call, plan, static_cast<T*>(request->output));
    };
    error = emulator::run_grid(plan, forward_shared_size<T>(plan, call.points),
                               request->is_backwards, kernel);
  });
  return error;
}

extern "C" const char* emulate_backward(const Request* request) {
  const Call<T> call = to_call(*request);
  const Gradients<T> gradients{static_cast<const T*>(request->grad), request->grad_input,
                               request->unit,
                               make_side<T>(request->grad_offset, 0, request->is_offset_wide),
                               make_side<T>(request->grad_mask, 0, request->is_mask_wide)};
  const bool adds_vectors = request->wants_vectors && request->unit == nullptr;
  const char* error = nullptr;
  choose_kernel(call, adds_vectors, [&](auto channels, auto fixed_points) {
    constexpr int vector = channels, points = fixed_points;
    const Plan plan = make_plan(call, vector, static_cast<int>(request->multiprocessors));
    const auto kernel = [&] {
      if (request->unit == nullptr) {
        backward_kernel<T, vector, points, false>(call, plan, gradients);
      } else if constexpr (vector == 1) {
        backward_kernel<T, 1, 0, true>(call, plan, gradients);
      }
    };
    error = emulator::run_grid(plan, backward_shared_size<T>(plan, call.points),
                               request->is_backwards, kernel);
  });
  return error;
}

extern "C" unsigned emulate_quotient(unsigned numerator, int divisor) {
  return quotient(numerator, make_divisor(divisor));
}

// Half of the threads leave, the others wait for them: must be reported.
extern "C" const char* emulate_deadlock() {
  Plan plan{};
  plan.blocks_per_image = plan.images_y = plan.images_z = 1;
  return emulator::run_grid(plan, 0, false, [] {
    if (threadIdx.x < kThreads / 2) __syncthreads();
  });
}
