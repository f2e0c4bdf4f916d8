// A dense layer as a target of XLA's foreign function interface.
#include <cmath>
#include <string_view>

#include "handler.h"

namespace jaxpool {

namespace {

// Best first.
constexpr Choice<ProductKernel> kKernels[] = {{"amx", has_amx_bf16, amx, kBFloat16},
                                              {"amx", has_amx_int8, amx, kInt8},
                                              {"amx", has_amx_bf16, amx_float32, kFloat32, 64},
                                              {"avx512_bf16", has_avx512_bf16, avx512_bf16, kBFloat16 | kInt8},
                                              {"avx512_vnni", has_avx512_vnni, avx512_vnni, kInt8},
                                              {"avx512", has_avx512, avx512, kAll},
                                              {"avx2", has_avx2, avx2, kAll}};

constexpr struct {
  std::string_view name;
  Activation activation;
} kActivations[] = {{"identity", Activation::kIdentity},  {"gelu", Activation::kGelu},
                    {"gelu_tanh", Activation::kGeluTanh}, {"quick_gelu", Activation::kQuickGelu},
                    {"silu", Activation::kSilu},          {"relu", Activation::kRelu}};

int64_t parts(int64_t size, int64_t each) { return (size + each - 1) / each; }

// Whether a piece may have many columns, since its rows of x may have to be widened, split or summed first. Not where
// what is used again would leave the cache meanwhile: the part of the kernel, of which AMX takes all columns for a few
// rows, or sums that wait for the rest of their words.
bool is_wide(ProductKernel kernel, const Product& call) {
  if (kernel == ProductKernel(amx)) return false;
  if (kernel == amx_float32) return true;
  const bool widens = kernel == ProductKernel(avx2) || kernel == ProductKernel(avx512);
  return (widens ? call.inputs : call.width() / 4) <= Product::kDepth;
}

// How a result is cut up: into few columns or many, over rows that are worth fetching their part of the kernel for;
// into smaller pieces where larger ones would leave a core idle at the end.
class Cut {
 public:
  Cut(int64_t rows, int64_t outputs, bool wide, int64_t cores) : rows_(rows), outputs_(outputs) {
    constexpr int64_t kSizes[][2] = {{256, 384}, {256, 128}, {128, 128}, {64, 128}, {64, 64}, {32, 64}, {32, 32}};
    double least = HUGE_VAL;
    for (const auto [most_rows, columns] : kSizes) {
      if (columns > 128 && !wide) continue;
      const int64_t down = parts(rows, most_rows), count = down * parts(outputs, columns);
      const double turns = double(parts(count, cores) * cores) / count;  // 1 if all cores are busy to the end
      if (turns > 0.9 * least) continue;
      least = turns;
      each_ = {.rows = parts(parts(rows, down), 16) * 16, .columns = columns};
    }
    down_ = parts(rows, each_.rows);
  }

  int64_t count() const { return down_ * parts(outputs_, each_.columns); }

  Piece piece(int64_t number) const {
    const int64_t row = number % down_ * each_.rows, column = number / down_ * each_.columns;
    return {row, column, std::min(each_.rows, rows_ - row), std::min(each_.columns, outputs_ - column)};
  }

 private:
  int64_t rows_, outputs_, down_;
  Piece each_;
};

bool is(const ffi::Buffer<ffi::F32>& vector, int64_t size) { return vector.element_count() == size_t(size); }

const float* or_null(ffi::Buffer<ffi::F32>& vector) { return vector.element_count() ? vector.typed_data() : nullptr; }

ffi::Error run(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer panels, ffi::Buffer<ffi::F32> row_scale,
               ffi::Buffer<ffi::F32> scale, ffi::Buffer<ffi::F32> bias, ffi::AnyBuffer other,
               ffi::Result<ffi::AnyBuffer> out, std::string_view activation, bool multiplies, std::string_view name) {
  const auto dtype = x.element_type(), result = out->element_type();
  const auto* entry = std::find_if(std::begin(kActivations), std::end(kActivations),
                                   [activation](const auto& entry) { return entry.name == activation; });
  if (entry == std::end(kActivations)) return ffi::Error::InvalidArgument("product: no such activation");
  if ((!is_float(dtype) && dtype != ffi::S8) || panels.element_type() != dtype || !is_float(result) ||
      !is_float(other.element_type()))
    return ffi::Error::InvalidArgument("product: dtypes");
  const auto sizes = x.dimensions(), outs = out->dimensions();
  if (sizes.size() != 2 || outs.size() != 2 || outs[0] != sizes[0])
    return ffi::Error::InvalidArgument("product: sizes do not go together");
  const bool int8 = dtype == ffi::S8, float32 = dtype == ffi::F32;
  const int64_t rows = sizes[0], inputs = sizes[1], outputs = outs[1];
  const int64_t depth = float32 ? 1 : int8 ? 64 : 32, wide = (inputs + depth - 1) / depth * depth;
  const int64_t columns = (outputs + Product::kPanel - 1) / Product::kPanel * Product::kPanel;
  if (panels.element_count() != size_t(wide * columns) || !(is(bias, outputs) || is(bias, 0)) ||
      (other.element_count() && other.dimensions() != outs) || (int8 && !(is(row_scale, rows) && is(scale, outputs))))
    return ffi::Error::InvalidArgument("product: sizes do not go together");
  const ProductKernel kernel = choose(kKernels, name, dtype, rows);
  if (!kernel) return ffi::Error::InvalidArgument("product: this CPU has no such kernel");
  const Product call = {
      .dtype = float32 ? Product::kFloat32
               : int8  ? Product::kInt8
                       : Product::kBFloat16,
      .x = x.untyped_data(),
      .panels = panels.untyped_data(),
      .row_scale = row_scale.typed_data(),
      .scale = scale.typed_data(),
      .bias = or_null(bias),
      .activation = entry->activation,
      .other = other.element_count() ? other.untyped_data() : nullptr,
      .other_bfloat16 = other.element_type() == ffi::BF16,
      .multiplies = multiplies,
      .bfloat16 = result == ffi::BF16,
      .out = out->untyped_data(),
      .rows = rows,
      .inputs = inputs,
      .outputs = outputs,
  };
  if (rows == 0 || outputs == 0) return ffi::Error::Success();
  const Cut cut(rows, outputs, is_wide(kernel, call), free_cores(pool));
  return answer(pool, cut.count(), [call, kernel, cut](int64_t number) { kernel(call, cut.piece(number)); });
}

XLA_FFI_DEFINE_HANDLER(kProduct, run,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::Buffer<ffi::F32>>()
                           .Arg<ffi::Buffer<ffi::F32>>()
                           .Arg<ffi::Buffer<ffi::F32>>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<std::string_view>("activation")
                           .Attr<bool>("multiplies")
                           .Attr<std::string_view>("kernel"));

}  // namespace

Target product() {
  return {"product", kProduct, [](DTypes dtype) { return names(kKernels, dtype); }};
}

}  // namespace jaxpool
