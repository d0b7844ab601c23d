// The function that ONNX Runtime calls when it loads this library.
#include <string>

#include "kernel.h"
#include "operators.h"

#ifdef _WIN32
#define INTERNIMAGE_EXPORT __declspec(dllexport)
#else
#define INTERNIMAGE_EXPORT __attribute__((visibility("default")))
#endif

namespace internimage::onnx {
namespace {

CustomOp complete(CustomOp op) {
  op.version = kApiVersion;
  op.provider = [](const CustomOp*) -> const char* { return nullptr; };  // CPU
  op.input_type = [](const CustomOp*, size_t) { return kFloat; };
  op.output_type = [](const CustomOp*, size_t) { return kFloat; };
  op.outputs = [](const CustomOp*) { return size_t{1}; };
  op.output_presence = [](const CustomOp*, size_t) { return static_cast<int>(kRequired); };
  op.input_memory = [](const CustomOp*, size_t) { return 0; };  // the default type
  op.first_version = [](const CustomOp*) { return 1; };
  op.last_version = [](const CustomOp*) { return 1; };
  return op;
}

}  // namespace
}  // namespace internimage::onnx

extern "C" INTERNIMAGE_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                           const OrtApiBase* base) {
  using namespace internimage::onnx;
  const void* const* table = base->get_api(kApiVersion);
  if (table == nullptr) {
    const std::string message = std::string("The operators of InternImage need ONNX Runtime 1.18 or "
                                            "later, and this is ") +
                                base->get_version() + ".";
    const void* const* first = base->get_api(1);
    return first == nullptr ? nullptr : Runtime(first).create_status(kFail, message.c_str());
  }
  const Runtime runtime(table);
  return guarded(runtime, [&] {
    static const CustomOp operators[] = {complete(block_operator()), complete(dcnv3_operator()),
                                         complete(dcnv4_operator())};
    OrtCustomOpDomain* domain = nullptr;  // never released: the options keep it
    expect(runtime.create_domain("internimage", &domain));
    for (const CustomOp& op : operators) expect(runtime.add_operator(domain, &op));
    expect(runtime.add_domain(options, domain));
  });
}
