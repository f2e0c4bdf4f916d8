// Rows of 8-bit integers as a target of XLA's foreign function interface.
#include "handler.h"

namespace jaxpool {

namespace {

// Best first.
constexpr Choice<QuantiseKernel> kKernels[] = {{"avx512", has_avx512, avx512, kFloats},
                                               {"avx2", has_avx2, avx2, kFloats}};

ffi::Error run(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::ResultBuffer<ffi::S8> out,
               ffi::ResultBuffer<ffi::F32> scale, int64_t block, std::string_view name) {
  const auto sizes = x.dimensions();
  if (!is_float(x.element_type())) return ffi::Error::InvalidArgument("quantise: dtype");
  if (sizes.size() != 2 || out->dimensions() != sizes || scale->element_count() != size_t(sizes[0]) || block < 1 ||
      block > 16 || (block & (block - 1)) || sizes[1] % block)
    return ffi::Error::InvalidArgument("quantise: sizes do not go together");
  const QuantiseKernel kernel = choose(kKernels, name, x.element_type());
  if (!kernel) return ffi::Error::InvalidArgument("quantise: this CPU has no such kernel");
  const Quantise call = {
      .x = x.untyped_data(),
      .bfloat16 = x.element_type() == ffi::BF16,
      .block = block,
      .out = out->typed_data(),
      .scale = scale->typed_data(),
      .rows = sizes[0],
      .width = sizes[1],
  };
  return by_rows(pool, call.rows, [call, kernel](int64_t first, int64_t rows) { kernel(call, first, rows); });
}

XLA_FFI_DEFINE_HANDLER(kQuantise, run,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::Buffer<ffi::S8>>()
                           .Ret<ffi::Buffer<ffi::F32>>()
                           .Attr<int64_t>("block")
                           .Attr<std::string_view>("kernel"));

}  // namespace

Target quantise() {
  return {"quantise", kQuantise, [](DTypes dtype) { return names(kKernels, dtype); }};
}

}  // namespace jaxpool
