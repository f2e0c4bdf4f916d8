"""The real programs, compiled for TPUs on a machine that has none: `python -m benchmarks.tpu_aot`.

Needs libtpu, of the version that belongs to the installed JAX (docs/tpu.md). Exit status 1 where a program of long rows
holds what it must not (`aot.py`).
"""

from __future__ import annotations

from benchmarks import aot
from jaxpool.attention import blocked, splash
from jaxpool.slices import Slice

TOPOLOGIES = tuple(map(Slice.parse, ("v5e:1x1", "v5e:2x4", "v6e:2x4", "tpu7x:2x2x1")))
COLUMNS = (
    *aot.FIRST_COLUMNS, *aot.SIZES,
    "GFLOP a token (2 × kernels)", "XLA's bytes", "kernel calls", "collectives", "weight copies",
)  # fmt: skip


def cells(f: aot.Figures) -> list[str]:
    """A program's cells behind the first ones."""
    work = f"{f.flops / 1e9:.3f} ({f.weight_flops / 1e9:.3f})"
    moved = f"{f.xla_bytes / 2**30:.2f} GiB"
    return [*aot.sizes(f), work, moved, str(f.kernels), aot.collectives(f), str(len(f.weight_copies))]


def main() -> int:
    """The command line; returns the exit status."""
    parser = aot.parser("tpu_aot", __doc__.splitlines()[0], TOPOLOGIES)
    parser.add_argument(
        "--splash-from",
        type=int,
        default=splash.MIN_TOKENS,
        metavar="T",
        help="rows of so many tokens and more take the splash kernel, shorter ones einsums (default: %(default)s)",
    )
    arguments = parser.parse_args()
    splash.MIN_TOKENS = blocked.MIN_TOKENS = arguments.splash_from
    return aot.compile_all(arguments, "tpu", COLUMNS, cells)


if __name__ == "__main__":
    raise SystemExit(main())
