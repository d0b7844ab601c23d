// What the operators have in common: errors, tensors, attributes, memory and threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "../window.h"
#include "runtime.h"

namespace internimage::onnx {

// An error of the runtime, on its way through functions that return something else.
struct Failure {
  OrtStatus* status;
};

inline void expect(OrtStatus* status) {
  if (status != nullptr) throw Failure{status};
}

// Calls `body` and turns exceptions into a status: none may leave this library.
template <typename Body>
OrtStatus* guarded(const Runtime& runtime, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return runtime.create_status(kFail, error.what());
  }
}

struct Tensor {
  std::vector<int64_t> shape;
  const float* data = nullptr;  // null if the input is missing

  int64_t count() const {
    int64_t product = 1;
    for (const int64_t size : shape) product *= size;
    return product;
  }
};

// A node of a session.
class Kernel {
 public:
  Kernel(const Runtime& runtime, const OrtKernelInfo* info) : runtime(runtime) {
    expect(runtime.kernel_allocator(info, &allocator_));
  }
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;
  ~Kernel() { runtime.release(allocator_); }

  int64_t integer(const OrtKernelInfo* info, const char* name) const {
    int64_t value = 0;
    expect(runtime.attribute(info, name, &value));
    return value;
  }

  float number(const OrtKernelInfo* info, const char* name) const {
    float value = 0;
    expect(runtime.attribute(info, name, &value));
    return value;
  }

  Pair pair(const OrtKernelInfo* info, const char* name) const {
    Pair values(2);
    size_t count = values.size();
    expect(runtime.attribute(info, name, values.data(), &count));
    values.resize(count);
    return values;
  }

  Tensor input(const OrtKernelContext* context, size_t number) const {
    const OrtValue* value = nullptr;
    expect(runtime.input(context, number, &value));
    if (value == nullptr) return {};
    OrtTensorTypeAndShapeInfo* info = nullptr;
    expect(runtime.type_and_shape(value, &info));
    const auto release = [this](OrtTensorTypeAndShapeInfo* owned) { runtime.release(owned); };
    const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> owner(info, release);
    size_t axes = 0;
    expect(runtime.axes(info, &axes));
    Tensor tensor;
    tensor.shape.resize(axes);
    expect(runtime.sizes(info, tensor.shape.data(), axes));
    void* data = nullptr;
    expect(runtime.data(const_cast<OrtValue*>(value), &data));
    tensor.data = static_cast<const float*>(data);
    return tensor;
  }

  float* output(OrtKernelContext* context, const std::vector<int64_t>& shape) const {
    OrtValue* value = nullptr;
    expect(runtime.output(context, 0, shape.data(), shape.size(), &value));
    void* data = nullptr;
    expect(runtime.data(value, &data));
    return static_cast<float*>(data);
  }

  // Memory of the session for a call.
  auto memory(int64_t count) const {
    void* memory = nullptr;
    expect(runtime.allocate(allocator_, count * sizeof(float), &memory));
    const auto free = [this](float* owned) { runtime.free(allocator_, owned); };
    return std::unique_ptr<float, decltype(free)>(static_cast<float*>(memory), free);
  }

  // Calls body(begin, end) for parts of [0, rows) in the threads of the session. Parts are multiples
  // of `unit`; those of large feature maps have about `part` rows.
  template <typename Body>
  void in_parallel(const OrtKernelContext* context, int64_t rows, int64_t unit, int64_t part,
                   const Body& body);

  const Runtime runtime;

 private:
  OrtAllocator* allocator_ = nullptr;
  // Threads that have been seen to run at the same time. The runtime does not tell their number, and
  // a part per thread is best for small feature maps.
  std::atomic<int64_t> threads_{1};
};

template <typename Body>
void Kernel::in_parallel(const OrtKernelContext* context, int64_t rows, int64_t unit, int64_t part,
                         const Body& body) {
  struct Call {
    const Body& body;
    int64_t rows, step;
    std::atomic<int64_t>& most;
    std::atomic<int64_t> next{0}, active{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error = nullptr;

    void work() noexcept {
      const int64_t now = ++active;
      int64_t before = most;
      while (before < now && !most.compare_exchange_weak(before, now)) {
      }
      try {
        for (int64_t begin; (begin = next.fetch_add(step)) < rows;) {
          body(begin, std::min(rows, begin + step));
        }
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
      --active;
    }
  };
  if (rows <= 0) return;
  const int64_t units = (rows + unit - 1) / unit, threads = threads_;
  const int64_t per_thread = std::max<int64_t>(1, rows / (threads * part));
  const int64_t parts = std::max<int64_t>(1, std::min(units, threads * per_thread));
  Call call{body, rows, (units + parts - 1) / parts * unit, threads_};
  const int64_t processors = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const auto work = [](void* data, size_t) { static_cast<Call*>(data)->work(); };
  expect(runtime.parallel_for(context, work, std::min(processors, units), &call));
  if (call.error) std::rethrow_exception(call.error);
}

// The functions that create, run and delete a kernel of class K, which has a member
// `run(OrtKernelContext*)`.
template <typename K>
void set_kernel(CustomOp& op) {
  op.create = [](const CustomOp*, const void* const* api, const OrtKernelInfo* info,
                 void** kernel) {
    const Runtime runtime(api);
    return guarded(runtime, [&] { *kernel = new K(runtime, info); });
  };
  op.compute = [](void* kernel, OrtKernelContext* context) {
    auto& self = *static_cast<K*>(kernel);
    return guarded(self.runtime, [&] { self.run(context); });
  };
  op.destroy = [](void* kernel) { delete static_cast<K*>(kernel); };
}

}  // namespace internimage::onnx
