// The part of the C interface of ONNX Runtime that this library uses.
//
// The interface is a table of functions whose order is fixed: later versions append to it. So the
// library needs neither headers nor libraries of ONNX Runtime, and one build runs with every version
// from 1.18 on. The numbers are positions in `OrtApi` of onnxruntime_c_api.h (ONNX Runtime,
// include/onnxruntime/core/session), and `CustomOp` has the fields of its `OrtCustomOp`.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtAllocator;

struct OrtApiBase {
  const void* const* (*get_api)(uint32_t version);  // null if the runtime is older
  const char* (*get_version)();
};

namespace internimage::onnx {

// ONNX Runtime 1.18, the first version with an allocator for kernels.
constexpr uint32_t kApiVersion = 18;
constexpr int kFail = 1, kInvalidArgument = 2;  // error codes
constexpr int kFloat = 1;                       // element type
enum Presence : int { kRequired = 0, kOptional = 1 };

// The functions of a runtime. Those that return a status return null if they succeed.
class Runtime {
 public:
  explicit Runtime(const void* const* table) : table_(table) {}

  OrtStatus* create_status(int code, const char* message) const {
    return call<0, OrtStatus*>(code, message);
  }
  OrtStatus* create_domain(const char* name, OrtCustomOpDomain** domain) const {
    return call<26, OrtStatus*>(name, domain);
  }
  OrtStatus* add_operator(OrtCustomOpDomain* domain, const struct CustomOp* op) const {
    return call<27, OrtStatus*>(domain, op);
  }
  OrtStatus* add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return call<28, OrtStatus*>(options, domain);
  }

  OrtStatus* data(OrtValue* value, void** data) const {
    return call<51, OrtStatus*>(value, data);
  }
  OrtStatus* axes(const OrtTensorTypeAndShapeInfo* info, size_t* count) const {
    return call<61, OrtStatus*>(info, count);
  }
  OrtStatus* sizes(const OrtTensorTypeAndShapeInfo* info, int64_t* sizes, size_t count) const {
    return call<62, OrtStatus*>(info, sizes, count);
  }
  OrtStatus* type_and_shape(const OrtValue* value, OrtTensorTypeAndShapeInfo** info) const {
    return call<65, OrtStatus*>(value, info);
  }
  void release(OrtTensorTypeAndShapeInfo* info) const { call<99, void>(info); }

  OrtStatus* allocate(OrtAllocator* allocator, size_t bytes, void** memory) const {
    return call<75, OrtStatus*>(allocator, bytes, memory);
  }
  OrtStatus* free(OrtAllocator* allocator, void* memory) const {
    return call<76, OrtStatus*>(allocator, memory);
  }
  OrtStatus* kernel_allocator(const OrtKernelInfo* info, OrtAllocator** allocator) const {
    return call<278, OrtStatus*>(info, 0, allocator);  // 0: the default type of memory
  }
  void release(OrtAllocator* allocator) const { call<132, void>(allocator); }

  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, float* value) const {
    return call<85, OrtStatus*>(info, name, value);
  }
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, int64_t* value) const {
    return call<86, OrtStatus*>(info, name, value);
  }
  // `count` is the capacity of `values`, then their number.
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, int64_t* values,
                       size_t* count) const {
    return call<163, OrtStatus*>(info, name, values, count);
  }

  // Null for an optional input that is missing.
  OrtStatus* input(const OrtKernelContext* context, size_t number, const OrtValue** value) const {
    return call<90, OrtStatus*>(context, number, value);
  }
  OrtStatus* output(OrtKernelContext* context, size_t number, const int64_t* sizes, size_t axes,
                    OrtValue** value) const {
    return call<91, OrtStatus*>(context, number, sizes, axes, value);
  }
  // Calls body(data, i) for i in [0, count) in the threads of the session.
  OrtStatus* parallel_for(const OrtKernelContext* context, void (*body)(void*, size_t),
                          size_t count, void* data) const {
    return call<274, OrtStatus*>(context, body, count, size_t{0}, data);
  }

 private:
  template <size_t kPosition, typename Result, typename... Arguments>
  Result call(Arguments... arguments) const {
    using Function = Result (*)(Arguments...);
    return reinterpret_cast<Function>(const_cast<void*>(table_[kPosition]))(arguments...);
  }

  const void* const* table_;
};

// An operator, as ONNX Runtime reads it. Null stands for functions that it does not have.
struct CustomOp {
  uint32_t version;
  void* create_without_status;
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  int (*input_type)(const CustomOp*, size_t);
  size_t (*inputs)(const CustomOp*);
  int (*output_type)(const CustomOp*, size_t);
  size_t (*outputs)(const CustomOp*);
  void* compute_without_status;
  void (*destroy)(void* kernel);
  int (*input_presence)(const CustomOp*, size_t);
  int (*output_presence)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_least)(const CustomOp*);
  int (*variadic_input_is_homogeneous)(const CustomOp*);
  int (*variadic_output_least)(const CustomOp*);
  int (*variadic_output_is_homogeneous)(const CustomOp*);
  OrtStatus* (*create)(const CustomOp*, const void* const* api, const OrtKernelInfo*,
                       void** kernel);
  OrtStatus* (*compute)(void* kernel, OrtKernelContext*);
  void* infer_shapes;
  int (*first_version)(const CustomOp*);
  int (*last_version)(const CustomOp*);
  void* may_be_in_place;
  void* release_in_place;
  void* aliases;
  void* release_aliases;
};

}  // namespace internimage::onnx
