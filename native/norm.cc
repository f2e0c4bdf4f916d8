// Norms as a target of XLA's foreign function interface.
#include "handler.h"

namespace jaxpool {

namespace {

// Best first.
constexpr Choice<NormKernel> kKernels[] = {{"avx512_bf16", has_avx512_bf16, avx512_bf16, kFloats},
                                           {"avx512", has_avx512, avx512, kFloats},
                                           {"avx2", has_avx2, avx2, kFloats}};

ffi::Error run(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::F32> scale, ffi::Buffer<ffi::F32> bias,
               ffi::Result<ffi::AnyBuffer> out, float epsilon, bool centred, std::string_view name) {
  if (!is_float(x.element_type()) || !is_float(out->element_type())) return ffi::Error::InvalidArgument("norm: dtypes");
  const auto sizes = x.dimensions();
  if (sizes.size() != 2 || out->dimensions() != sizes || scale.element_count() != size_t(sizes[1]) ||
      (bias.element_count() && bias.element_count() != size_t(sizes[1])))
    return ffi::Error::InvalidArgument("norm: sizes do not go together");
  const NormKernel kernel = choose(kKernels, name, x.element_type());
  if (!kernel) return ffi::Error::InvalidArgument("norm: this CPU has no such kernel");
  const Norm call = {
      .x = x.untyped_data(),
      .x_bfloat16 = x.element_type() == ffi::BF16,
      .scale = scale.typed_data(),
      .bias = bias.element_count() ? bias.typed_data() : nullptr,
      .centred = centred,
      .epsilon = epsilon,
      .bfloat16 = out->element_type() == ffi::BF16,
      .out = out->untyped_data(),
      .rows = sizes[0],
      .width = sizes[1],
  };
  return by_rows(pool, call.rows, [call, kernel](int64_t first, int64_t rows) { kernel(call, first, rows); });
}

XLA_FFI_DEFINE_HANDLER(kNorm, run,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::Buffer<ffi::F32>>()
                           .Arg<ffi::Buffer<ffi::F32>>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon")
                           .Attr<bool>("centred")
                           .Attr<std::string_view>("kernel"));

}  // namespace

Target norm() {
  return {"norm", kNorm, [](DTypes dtype) { return names(kKernels, dtype); }};
}

}  // namespace jaxpool
