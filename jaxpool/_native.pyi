"""`native/module.cc`: kernels for x86 CPUs. Not there where it could not be built."""

def kernels() -> list[str]:
    """The instruction sets that this CPU has, best first: of "amx", "avx512" and "avx2"."""

def handlers() -> dict[str, object]:
    """XLA's handlers by name ("attention", "norm", "product", "quantise"), for `jax.ffi.register_ffi_target`."""
