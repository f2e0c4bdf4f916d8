// The Python module.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "handler.h"

namespace jaxpool {
namespace {

const Target kTargets[] = {attention(), norm(), product(), quantise()};

constexpr struct {
  const char* name;
  DTypes dtype;
} kDTypes[] = {{"float32", kFloat32}, {"bfloat16", kBFloat16}, {"int8", kInt8}};

// A dictionary of value(item) by each item's name; null with Python's error set, as any value may be.
template <class Items, class Value>
PyObject* dictionary(const Items& items, Value value) {
  PyObject* all = PyDict_New();
  for (const auto& item : items) {
    PyObject* one = all ? value(item) : nullptr;
    if (!one || PyDict_SetItemString(all, item.name, one) < 0) Py_CLEAR(all);
    Py_XDECREF(one);
  }
  return all;
}

PyObject* tuple(const std::vector<std::string_view>& names) {
  PyObject* all = PyTuple_New(names.size());
  for (size_t i = 0; all && i < names.size(); ++i) {
    PyObject* name = PyUnicode_FromStringAndSize(names[i].data(), names[i].size());
    if (name)
      PyTuple_SET_ITEM(all, i, name);
    else
      Py_CLEAR(all);
  }
  return all;
}

PyObject* kernels(PyObject*, PyObject*) {
  return dictionary(kTargets, [](const Target& target) {
    return dictionary(kDTypes, [&](const auto& entry) { return tuple(target.kernels(entry.dtype)); });
  });
}

PyObject* handlers(PyObject*, PyObject*) {
  return dictionary(kTargets, [](const Target& target) {
    return PyCapsule_New(reinterpret_cast<void*>(target.handler), nullptr, nullptr);
  });
}

PyMethodDef methods[] = {
    {"kernels", kernels, METH_NOARGS,
     "For each handler and dtype of its operands, the instruction sets that this CPU has kernels of, best first."},
    {"handlers", handlers, METH_NOARGS, "XLA's handlers by name, for jax.ffi.register_ffi_target."},
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
