// Attention as a target of XLA's foreign function interface, and the choice of its kernel.
#include "handler.h"

namespace jaxpool {

namespace {

// Best first.
constexpr Choice<AttentionKernel> kKernels[] = {{"amx", has_amx_bf16, amx, kBFloat16},
                                                {"avx512_bf16", has_avx512_bf16, avx512_bf16, kBFloat16},
                                                {"avx512", has_avx512, avx512, kFloats},
                                                {"avx2", has_avx2, avx2, kFloats}};

ffi::Error run(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
               ffi::Buffer<ffi::S32> segments, ffi::Result<ffi::AnyBuffer> out, float scale, int64_t left,
               int64_t right, std::string_view name) {
  const auto dtype = q.element_type(), result = out->element_type();
  if (!is_float(dtype) || !is_float(result)) return ffi::Error::InvalidArgument("attention: dtype");
  if (k.element_type() != dtype || v.element_type() != dtype)
    return ffi::Error::InvalidArgument("attention: q, k and v are of several dtypes");
  const auto sizes = q.dimensions(), others = k.dimensions();
  if (sizes.size() != 4 || others.size() != 4 || others[2] == 0 || sizes[2] % others[2] != 0 || sizes[0] != others[0] ||
      sizes[1] != others[1] || sizes[3] != others[3] || v.dimensions() != others || out->dimensions() != sizes ||
      segments.dimensions() != sizes.first(2))
    return ffi::Error::InvalidArgument("attention: sizes do not go together");
  const AttentionKernel kernel = choose(kKernels, name, dtype);
  if (!kernel) return ffi::Error::InvalidArgument("attention: this CPU has no such kernel");
  const Attention call = {
      .q = q.untyped_data(),
      .k = k.untyped_data(),
      .v = v.untyped_data(),
      .bfloat16 = dtype == ffi::BF16,
      .segments = segments.typed_data(),
      .out_bfloat16 = result == ffi::BF16,
      .out = out->untyped_data(),
      .rows = sizes[0],
      .tokens = sizes[1],
      .heads = sizes[2],
      .kv_heads = others[2],
      .width = sizes[3],
      .scale = scale,
      .left = std::clamp<int64_t>(left, 0, sizes[1]),
      .right = std::clamp<int64_t>(right, 0, sizes[1]),
  };
  return answer(pool, call.rows * call.kv_heads,
                [call, kernel](int64_t number) { kernel(call, number / call.kv_heads, number % call.kv_heads); });
}

XLA_FFI_DEFINE_HANDLER(kAttention, run,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::Buffer<ffi::S32>>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("scale")
                           .Attr<int64_t>("left")
                           .Attr<int64_t>("right")
                           .Attr<std::string_view>("kernel"));

}  // namespace

Target attention() {
  return {"attention", kAttention, [](DTypes dtype) { return names(kKernels, dtype); }};
}

}  // namespace jaxpool
