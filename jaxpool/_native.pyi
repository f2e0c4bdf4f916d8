"""`native/module.cc`: kernels for x86 CPUs. Not there where it could not be built."""

def kernels() -> dict[str, dict[str, tuple[str, ...]]]:
    """For each handler and dtype of its operands ("float32", "bfloat16", "int8"), the instruction sets whose kernels
    this CPU can run, best first: of "amx", "avx512_bf16", "avx512_vnni", "avx512" and "avx2".
    """

def handlers() -> dict[str, object]:
    """XLA's handlers by name ("attention", "norm", "product", "quantise"), for `jax.ffi.register_ffi_target`."""
