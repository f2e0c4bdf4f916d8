"""The real programs, compiled for NVIDIA GPUs on a machine that has none: `python -m benchmarks.gpu_aot`.

Needs JAX's CUDA plugin, not CUDA (docs/gpu.md). Exit status 1 where a program of long rows holds what it must not
(`aot.py`). Where a GPU is, XLA tries its library's products and Triton's and takes the quicker; here none can be tried,
and the library's are taken (`--triton`: the others).
"""

from __future__ import annotations

from benchmarks import aot, gpu_device
from jaxpool import runner
from jaxpool.ahead.gpu import TARGETS
from jaxpool.slices import Slice

TOPOLOGIES = tuple(map(Slice.parse, ("l4:1", "a100-80:1", "h100:1")))
COLUMNS = (
    *aot.FIRST_COLUMNS, *aot.SIZES,
    "GFLOP a token (2 × kernels)",
    "KB a token: products", "attention", "the rest", "MFU at best", "kernel calls", "collectives", "weight copies",
)  # fmt: skip


def cells(f: aot.Figures) -> list[str]:
    """A program's cells behind the first ones."""
    tokens = f.tokens * f.rows // (f.chips // f.model_shards)
    moved = [f"{f.traffic.get(kind, 0) / tokens / 1e3:.0f}" for kind in ("products", "kernels", "rest")]
    work = f"{f.flops / 1e9:.3f} ({f.weight_flops / 1e9:.3f})"
    return [
        *aot.sizes(f),
        work,
        *moved,
        f"{at_best(f):.0%}",
        str(f.kernels),
        aot.collectives(f),
        str(len(f.weight_copies)),
    ]


def at_best(f: aot.Figures) -> float:
    """Model FLOPs utilisation if nothing but the device's peak and its memory took time; a text a row.

    Products take the longer of their operations and their bytes, attention's kernel too, everything else its bytes.
    """
    target = TARGETS[f.topology.partition(":")[0]]
    peak = gpu_device.PEAKS[target.name][gpu_device.BF16]
    tokens = f.tokens * f.rows / f.chips
    products, attention = tokens * f.weight_flops, tokens * (f.flops - f.weight_flops)
    seconds = max(products / peak, f.traffic["products"] / target.bandwidth)
    seconds += max(attention / peak, f.traffic["kernels"] / target.bandwidth)
    seconds += f.traffic["rest"] / target.bandwidth
    return (products + attention) / peak / seconds


def choose_products(*, triton: bool) -> None:
    """By Triton, or by the library: without a GPU neither can be tried."""
    options = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": triton}
    runner.COMPILER_OPTIONS = {"gpu": {**runner.COMPILER_OPTIONS["gpu"], **options}}


def main() -> int:
    """The command line; returns the exit status."""
    parser = aot.parser("gpu_aot", __doc__.splitlines()[0], TOPOLOGIES)
    parser.add_argument("--triton", action="store_true", help="products by Triton, not by the library")
    arguments = parser.parse_args()
    if arguments.dtype != gpu_device.BF16:
        parser.error(f"--dtype {arguments.dtype}: only {gpu_device.BF16} has kernels without loops, whose bytes count")
    choose_products(triton=arguments.triton)
    return aot.compile_all(arguments, "gpu", COLUMNS, cells)


if __name__ == "__main__":
    raise SystemExit(main())
