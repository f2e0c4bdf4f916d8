// The Python module: attention as a target of XLA's foreign function interface, and the choice of its kernel.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <string_view>
#include <utility>

#include "attention.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxpool {

char* workspace(size_t bytes) {
  static thread_local std::unique_ptr<char, decltype(&std::free)> memory(nullptr, std::free);
  static thread_local size_t size = 0;
  if (bytes > size) {
    const size_t rounded = (bytes + 63) / 64 * 64;
    size = 0;
    memory.reset(static_cast<char*>(std::aligned_alloc(64, rounded)));
    if (!memory) throw std::bad_alloc();
    size = rounded;
  }
  return memory.get();
}

namespace {

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// Linux keeps a process from the tiles until it asks for them.
bool has_amx() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool has = has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-tile") &&
                          __builtin_cpu_supports("amx-bf16") && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return has;
}

// Best first.
constexpr struct {
  const char* name;
  bool (*here)();
  Kernel kernel;
  bool float32;
} kKernels[] = {{"amx", has_amx, amx, false}, {"avx512", has_avx512, avx512, true}, {"avx2", has_avx2, avx2, true}};

Kernel choose(std::string_view name, bool bfloat16) {
  for (const auto& entry : kKernels) {
    if ((name == "auto" || name == entry.name) && (bfloat16 || entry.float32) && entry.here()) return entry.kernel;
  }
  return nullptr;
}

// Runs item(0) … item(count - 1) on this thread and on those of the pool that are idle meanwhile; false if one threw.
template <class Item>
bool share_out(ffi::ThreadPool& pool, int64_t count, Item item) {
  struct Progress {
    std::atomic<int64_t> next = 0, done = 0;
    std::atomic<bool> failed = false;
  };
  auto progress = std::make_shared<Progress>();
  // A thread that comes late finds nothing left to take, and touches nothing of this call but `progress`.
  auto work = [progress, count, item] {
    for (int64_t number; (number = progress->next++) < count;) {
      try {
        item(number);
      } catch (...) {
        progress->failed = true;
      }
      if (++progress->done == count) progress->done.notify_all();
    }
  };
  for (int64_t helper = 1; helper < count && helper < pool.num_threads(); ++helper) {
    auto copy = work;
    pool.Schedule(std::move(copy));
  }
  work();
  for (int64_t done; (done = progress->done) < count;) progress->done.wait(done);
  return !progress->failed;
}

ffi::Error attend(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                  ffi::Buffer<ffi::S32> segments, ffi::ResultBuffer<ffi::F32> out, float scale, int64_t left,
                  int64_t right, std::string_view name) {
  const auto dtype = q.element_type();
  if (dtype != ffi::BF16 && dtype != ffi::F32) return ffi::Error::InvalidArgument("attention: dtype");
  if (k.element_type() != dtype || v.element_type() != dtype)
    return ffi::Error::InvalidArgument("attention: q, k and v are of several dtypes");
  const auto sizes = q.dimensions(), others = k.dimensions();
  if (sizes.size() != 4 || others.size() != 4 || others[2] == 0 || sizes[2] % others[2] != 0 || sizes[0] != others[0] ||
      sizes[1] != others[1] || sizes[3] != others[3] || v.dimensions() != others || out->dimensions() != sizes ||
      segments.dimensions() != sizes.first(2))
    return ffi::Error::InvalidArgument("attention: sizes do not go together");
  const Kernel kernel = choose(name, dtype == ffi::BF16);
  if (!kernel) return ffi::Error::InvalidArgument("attention: this CPU has no such kernel");
  const Attention call = {
      .q = q.untyped_data(),
      .k = k.untyped_data(),
      .v = v.untyped_data(),
      .bfloat16 = dtype == ffi::BF16,
      .segments = segments.typed_data(),
      .out = out->typed_data(),
      .rows = sizes[0],
      .tokens = sizes[1],
      .heads = sizes[2],
      .kv_heads = others[2],
      .width = sizes[3],
      .scale = scale,
      .left = std::clamp<int64_t>(left, 0, sizes[1]),
      .right = std::clamp<int64_t>(right, 0, sizes[1]),
  };
  const bool done = share_out(pool, call.rows * call.kv_heads, [call, kernel](int64_t number) {
    kernel(call, number / call.kv_heads, number % call.kv_heads);
  });
  return done ? ffi::Error::Success() : ffi::Error(ffi::ErrorCode::kResourceExhausted, "attention: out of memory");
}

XLA_FFI_DEFINE_HANDLER(kAttention, attend,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::Buffer<ffi::S32>>()
                           .Ret<ffi::Buffer<ffi::F32>>()
                           .Attr<float>("scale")
                           .Attr<int64_t>("left")
                           .Attr<int64_t>("right")
                           .Attr<std::string_view>("kernel"));

// The names of the kernels that this CPU can run, best first.
PyObject* kernels(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (const auto& entry : kKernels) {
    if (!names || !entry.here()) continue;
    PyObject* name = PyUnicode_FromString(entry.name);
    if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

// XLA's handler, for `jax.ffi.register_ffi_target`.
PyObject* attention(PyObject*, PyObject*) {
  return PyCapsule_New(reinterpret_cast<void*>(kAttention), nullptr, nullptr);
}

PyMethodDef methods[] = {{"kernels", kernels, METH_NOARGS, "Names of the kernels that this CPU can run, best first."},
                         {"attention", attention, METH_NOARGS, "The handler of attention, for XLA."},
                         {nullptr, nullptr, 0, nullptr}};

PyModuleDef_Slot slots[] = {
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, nullptr}};

PyModuleDef module = {.m_base = PyModuleDef_HEAD_INIT,
                      .m_name = "jaxpool._native",
                      .m_doc = "Kernels for CPUs.",
                      .m_methods = methods,
                      .m_slots = slots};

}  // namespace
}  // namespace jaxpool

PyMODINIT_FUNC PyInit__native() { return PyModuleDef_Init(&jaxpool::module); }
