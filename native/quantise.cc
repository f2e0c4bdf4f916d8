// Rows of 8-bit integers as a target of XLA's foreign function interface.
#include "handler.h"

namespace jaxpool {

namespace {

ffi::Error run(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::ResultBuffer<ffi::S8> out,
               ffi::ResultBuffer<ffi::F32> scale, int64_t block) {
  const auto sizes = x.dimensions();
  if (!is_float(x.element_type())) return ffi::Error::InvalidArgument("quantise: dtype");
  if (sizes.size() != 2 || out->dimensions() != sizes || scale->element_count() != size_t(sizes[0]) || block < 1 ||
      block > 16 || (block & (block - 1)) || sizes[1] % block)
    return ffi::Error::InvalidArgument("quantise: sizes do not go together");
  if (!has_avx512()) return ffi::Error::InvalidArgument("quantise: this CPU has no AVX-512");
  const Quantise call = {
      .x = x.untyped_data(),
      .bfloat16 = x.element_type() == ffi::BF16,
      .block = block,
      .out = out->typed_data(),
      .scale = scale->typed_data(),
      .rows = sizes[0],
      .width = sizes[1],
  };
  return by_rows(pool, call.rows, [call](int64_t first, int64_t rows) { avx512(call, first, rows); });
}

XLA_FFI_DEFINE_HANDLER(kQuantise, run,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::Buffer<ffi::S8>>()
                           .Ret<ffi::Buffer<ffi::F32>>()
                           .Attr<int64_t>("block"));

}  // namespace

XLA_FFI_Handler* quantise() { return kQuantise; }

}  // namespace jaxpool
