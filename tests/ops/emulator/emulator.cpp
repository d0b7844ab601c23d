// Runs the CUDA kernels of src/ops/csrc/cuda for one type, INTERNIMAGE_TYPE, on the CPU
// (cuda_runtime.h tells how); called through ctypes.
#include "cuda_runtime.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <vector>

#include "backward.cuh"
#include "forward.cuh"

Index threadIdx, blockIdx, gridDim;

namespace internimage::cuda {
alignas(16) unsigned char shared_memory[227 * 1024];  // the most that sm_90 gives a block
}

namespace emulator {
namespace {

using internimage::cuda::shared_memory;

constexpr int kMostThreads = 512;

// What was counted, in the order of the ctypes structure in cuda_emulator.py.
struct Counts {
  int64_t additions;      // to global memory: of up to four neighbouring floats
  int64_t wavefronts;     // of accesses to shared memory
  int64_t conflict_free;  // what they would be without bank conflicts
};

enum class State { kReady, kAtBlockBarrier, kAtWarpExchange, kDone };

struct Fiber {
  ucontext_t entry;
  jmp_buf place;  // where it waits
  std::vector<char> stack = std::vector<char>(64 * 1024);
  bool has_started;
  State state;
  int kind;
  unsigned turns;     // exchanges so far
  unsigned barriers;  // of the block, so far
};

std::vector<Fiber> fibers(kMostThreads);
uint64_t exchanged[2][kMostThreads];
jmp_buf scheduler;
int current, threads;  // of the block that runs
std::function<void()> kernel;
bool is_counting;
Counts counts;
const char* hazard;

// The last accesses to a word of shared memory.
struct Access {
  int thread = -1;
  unsigned turns, barriers;

  // Whether a barrier lies between it and what a fiber does now.
  bool is_before(int other, const Fiber& fiber) const {
    return thread < 0 || thread == other || barriers != fiber.barriers ||
           (thread / 32 == other / 32 && turns != fiber.turns);
  }
};

struct Word {
  Access read, other_read, write;
  bool is_atomic;
};

std::vector<Word> words(sizeof(shared_memory) / 4);

void find_hazard(size_t offset, size_t size, char kind) {
  const Fiber& fiber = fibers[current];
  for (size_t i = offset / 4; i < (offset + size + 3) / 4; ++i) {
    Word& word = words[i];
    const bool is_ordered = word.write.is_before(current, fiber) ||
                            (kind == 'a' && word.is_atomic);
    const bool is_read_before = word.read.is_before(current, fiber) &&
                                word.other_read.is_before(current, fiber);
    if (!is_ordered || (kind != 'r' && !is_read_before)) {
      hazard = "threads use the same word of shared memory without a barrier";
    }
    const Access access{current, fiber.turns, fiber.barriers};
    if (kind == 'r') {
      if (word.read.thread != current) word.other_read = word.read;
      word.read = access;
    } else {
      word.write = access;
      word.is_atomic = kind == 'a';
    }
  }
}

// One instruction of a warp: its place in the program and how often it has run since the last
// exchange; what it accesses, by lane.
struct Instruction {
  uint64_t offset[32];
  uint64_t size = 0;
  uint32_t lanes = 0;
  bool is_atomic = false;
};

using Key = std::pair<const void*, unsigned>;
std::vector<std::map<Key, Instruction>> instructions(kMostThreads / 32);
std::vector<std::map<const void*, unsigned>> occurrences(kMostThreads);

// A warp moves 128 bytes at a time: words of the same bank take turns, and so do atomic additions to
// the same word.
void count_wavefronts(const Instruction& instruction) {
  const unsigned size = std::max<uint64_t>(4, instruction.size), lanes = 128 / size;
  for (unsigned first = 0; first < 32; first += lanes) {
    std::map<unsigned, std::multiset<uint64_t>> banks;
    for (unsigned lane = first; lane < first + lanes; ++lane) {
      if (!(instruction.lanes >> lane & 1)) continue;
      for (unsigned i = 0; i < size / 4; ++i) {
        const uint64_t word = instruction.offset[lane] / 4 + i;
        auto& bank = banks[word % 32];
        if (instruction.is_atomic || bank.count(word) == 0) bank.insert(word);
      }
    }
    size_t most = 0;
    for (const auto& bank : banks) most = std::max(most, bank.second.size());
    counts.wavefronts += most;
    counts.conflict_free += most > 0;
  }
}

void end_instructions(int warp) {
  for (const auto& instruction : instructions[warp]) count_wavefronts(instruction.second);
  instructions[warp].clear();
  for (int lane = 0; lane < 32; ++lane) occurrences[32 * warp + lane].clear();
}

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
  if (is_counting) {
    for (int warp = begin / 32; warp < end / 32; ++warp) end_instructions(warp);
  }
  return true;
}

const char* run_block(bool is_backwards) {
  std::memset(shared_memory, 0xCD, sizeof(shared_memory));
  std::fill(words.begin(), words.end(), Word());
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    getcontext(&fiber.entry);
    fiber.entry.uc_stack.ss_sp = fiber.stack.data();
    fiber.entry.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.entry, run_fiber, 0);
    fiber.has_started = false;
    fiber.state = State::kReady;
    fiber.kind = 0;
    fiber.turns = fiber.barriers = 0;
  }
  while (true) {
    for (int i = 0; i < threads; ++i) {
      current = is_backwards ? threads - 1 - i : i;
      if (fibers[current].state != State::kReady) continue;
      threadIdx.x = current;
      resume();
    }
    const auto is_done = [](const Fiber& fiber) { return fiber.state == State::kDone; };
    if (hazard != nullptr) return hazard;
    if (std::all_of(fibers.begin(), fibers.begin() + threads, is_done)) {
      for (int warp = 0; warp < threads / 32; ++warp) end_instructions(warp);
      return nullptr;
    }
    bool is_released = release(0, threads, State::kAtBlockBarrier);
    for (int warp = 0; warp < threads; warp += 32) {
      is_released |= release(warp, warp + 32, State::kAtWarpExchange);
    }
    if (!is_released) return "threads of a block or warp wait at different places";
  }
}

}  // namespace

void wait_for_block() {
  ++fibers[current].barriers;
  fibers[current].kind = 0;
  suspend(State::kAtBlockBarrier);
}

const uint64_t* exchange(uint64_t value, int kind) {
  Fiber& fiber = fibers[current];
  const int self = current;
  // Two buffers: a thread may give its next value before another has read this one.
  uint64_t* buffer = exchanged[fiber.turns++ % 2];
  buffer[self] = value;
  fiber.kind = kind;
  suspend(State::kAtWarpExchange);
  return buffer + self / 32 * 32;
}

static bool is_shared(const void* address) {
  return address >= shared_memory && address < shared_memory + sizeof(shared_memory);
}

__attribute__((noinline)) void note_shared(const void* address, size_t size, char kind) {
  if (!is_shared(address)) return;
  const size_t offset = static_cast<const unsigned char*>(address) - shared_memory;
  find_hazard(offset, size, kind);
  if (!is_counting) return;
  const void* place = __builtin_return_address(0);
  // Structures of odd sizes are read in pieces.
  const size_t piece = std::min<size_t>(16, size & -size);
  for (size_t at = 0; at < size; at += piece) {
    const Key key{place, occurrences[current][place]++};
    Instruction& instruction = instructions[current / 32][key];
    instruction.offset[current % 32] = offset + at;
    instruction.size = piece;
    instruction.lanes |= 1u << current % 32;
    instruction.is_atomic = kind == 'a';
  }
}

void note_addition(const void* address) {
  if (!is_shared(address)) ++counts.additions;
}

const char* run_grid(const internimage::cuda::Plan& plan, size_t limit, bool is_backwards,
                     std::function<void()> body) {
  if (plan.shared > limit || limit > sizeof(shared_memory)) return "too much shared memory";
  threads = plan.threads;
  if (threads > kMostThreads) return "too many threads";
  kernel = std::move(body);
  hazard = nullptr;
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
  int64_t offset_stride, mask_stride;
  bool is_packed;                         // offset holds packed rows, mask is not used
  int64_t multiprocessors, block_shared;  // of the device
  bool is_offset_wide, is_mask_wide;
  bool wants_vectors, is_backwards, is_deterministic, is_counting;
  void* output;
  const void* grad;
  void *grad_input, *grad_offset, *grad_mask;
  const double* unit;
};

using namespace internimage::cuda;
using T = INTERNIMAGE_TYPE;

static Sides to_sides(const Request& request, void* offset, int64_t offset_stride, void* mask,
                      int64_t mask_stride) {
  const int64_t points = request.problem.points();
  if (request.is_packed) {
    return make_packed_sides<T>(offset, offset_stride, points, request.is_offset_wide);
  }
  return {make_side<T>(offset, offset_stride, 2 * points, request.is_offset_wide),
          make_side<T>(mask, mask_stride, points, request.is_mask_wide)};
}

static Call<T> to_call(const Request& request) {
  Call<T> call = make_call<T>(request.problem);
  call.input = static_cast<const T*>(request.input);
  const Sides sides = to_sides(request, request.offset, request.offset_stride, request.mask,
                               request.mask_stride);
  call.offset = sides.offset;
  call.mask = sides.mask;
  return call;
}

static Limits to_limits(const Request& request) {
  return {static_cast<int>(request.multiprocessors), request.block_shared, request.block_shared};
}

static void start_counting(const Request& request) {
  emulator::is_counting = request.is_counting;
  emulator::counts = {};
}

// Both return null, or what went wrong.
extern "C" const char* emulate_forward(const Request* request) {
  const Call<T> call = to_call(*request);
  const char* error = nullptr;
  start_counting(*request);
  choose_kernel(call, request->wants_vectors, [&](auto channels, auto fixed_points) {
    constexpr int vector = channels, points = fixed_points;
    const Plan plan = make_forward_plan(call, vector, to_limits(*request));
    const auto kernel = [&] {
      forward_kernel<T, vector, points>(call, plan, static_cast<T*>(request->output));
    };
    error = emulator::run_grid(plan, request->block_shared, request->is_backwards, kernel);
  });
  return error;
}

extern "C" const char* emulate_backward(const Request* request) {
  const Call<T> call = to_call(*request);
  const internimage::Problem& problem = request->problem;
  const int64_t values = problem.groups * problem.points();  // of the mask of an output pixel
  const int64_t width = request->is_packed ? problem.row_width() : 2 * values;
  const Sides sides = to_sides(*request, request->grad_offset, width, request->grad_mask, values);
  const Gradients<T> gradients{static_cast<const T*>(request->grad),
                               request->grad_input,
                               request->unit,
                               request->is_deterministic,
                               sides.offset,
                               sides.mask,
                               request->is_packed ? static_cast<int>(width - 3 * values) : 0};
  const char* error = nullptr;
  start_counting(*request);
  choose_kernel(call, request->wants_vectors, [&](auto channels, auto fixed_points) {
    constexpr int vector = channels, points = fixed_points;
    const BackwardPlan plans = make_backward_plan(call, vector, to_limits(*request));
    const auto kernel = [&] { backward_kernel<T, vector, points>(call, plans, gradients); };
    error = emulator::run_grid(plans.plan, request->block_shared, request->is_backwards, kernel);
  });
  return error;
}

// How the backward is cut, in the order of the ctypes structure in cuda_emulator.py.
struct Cut {
  int64_t is_whole_map, tile_height, tile_width, copy_height, copy_width, warps, shared;
};

extern "C" void emulate_plan(const Request* request, Cut* cut) {
  const Call<T> call = to_call(*request);
  choose_kernel(call, request->wants_vectors, [&](auto channels, auto) {
    const auto [plan, copy] = make_backward_plan(call, channels, to_limits(*request));
    *cut = {copy.is_whole_map, plan.tile_height, plan.tile_width, copy.height, copy.width,
            plan.warps,        int64_t(plan.shared)};
  });
}

extern "C" void emulate_counts(emulator::Counts* counts) { *counts = emulator::counts; }

extern "C" unsigned emulate_quotient(unsigned numerator, int divisor) {
  return quotient(numerator, make_divisor(divisor));
}

static const char* emulate(const std::function<void()>& kernel) {
  Plan plan{};
  plan.blocks_per_image = plan.images_y = plan.images_z = 1;
  plan.threads = 128;
  return emulator::run_grid(plan, 1024, false, kernel);
}

// Half of the threads leave, the others wait for them: must be reported.
extern "C" const char* emulate_deadlock() {
  return emulate([] {
    if (threadIdx.x < 64) __syncthreads();
  });
}

// Threads read what others write, with and without a barrier between; the latter must be reported.
extern "C" const char* emulate_hazard(bool has_barrier) {
  return emulate([has_barrier] {
    const Table<int> table = Arena{shared_memory}.take<int>(128);
    table.put(threadIdx.x, 1);
    if (has_barrier) __syncwarp();
    table.get(threadIdx.x ^ 1);
  });
}

// Wavefronts of 32 threads that read words `stride` apart.
extern "C" int64_t emulate_conflicts(int stride) {
  emulator::is_counting = true;
  emulator::counts = {};
  emulate([stride] {
    const Table<int> table = Arena{shared_memory}.take<int>(4096);
    if (threadIdx.x < 32) table.get(stride * threadIdx.x);
  });
  return emulator::counts.wavefronts;
}
