// The Python module.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "handler.h"

namespace jaxpool {
namespace {

// The names of the instruction sets that this CPU has, best first.
PyObject* kernels(PyObject*, PyObject*) {
  constexpr struct {
    const char* name;
    bool (*here)();
  } kSets[] = {{"amx", has_amx}, {"avx512", has_avx512}, {"avx2", has_avx2}};
  PyObject* names = PyList_New(0);
  for (const auto& set : kSets) {
    if (!names || !set.here()) continue;
    PyObject* name = PyUnicode_FromString(set.name);
    if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

// XLA's handlers by name, for `jax.ffi.register_ffi_target`.
PyObject* handlers(PyObject*, PyObject*) {
  const auto capsule = [](XLA_FFI_Handler* handler) {
    return PyCapsule_New(reinterpret_cast<void*>(handler), nullptr, nullptr);
  };
  return Py_BuildValue("{s:N,s:N,s:N,s:N}", "attention", capsule(attention()), "norm", capsule(norm()), "product",
                       capsule(product()), "quantise", capsule(quantise()));
}

PyMethodDef methods[] = {
    {"kernels", kernels, METH_NOARGS, "Names of the instruction sets that this CPU has, best first."},
    {"handlers", handlers, METH_NOARGS, "XLA's handlers by name."},
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
