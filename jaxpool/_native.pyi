"""`native/module.cc`: kernels for x86 CPUs. Not there where it could not be built."""

def kernels() -> list[str]:
    """Names of the kernels that this CPU can run, best first: of "amx", "avx512" and "avx2"."""

def attention() -> object:
    """XLA's handler of attention, for `jax.ffi.register_ffi_target`."""
