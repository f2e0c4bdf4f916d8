"""Which NVIDIA GPU a program will run on, as far as this process can tell."""

from __future__ import annotations

import jax

# The first whose matrix units multiply bfloat16.
AMPERE = (8, 0)
TOO_OLD = "the GPU is older than NVIDIA's Ampere, or another maker's"


def compute_capability() -> tuple[int, ...] | None:
    """NVIDIA's version of the first GPU, () for other makers' ("gfx90a"); None without a GPU.

    Without one, a program is compiled for another machine.
    """
    try:
        version = getattr(jax.local_devices(backend="gpu")[0], "compute_capability", "")
    except RuntimeError:
        return None
    return tuple(map(int, version.split("."))) if version.replace(".", "").isdigit() else ()


def too_old() -> bool:
    """Whether there is a GPU here and it has no matrix unit for bfloat16 that we know how to use."""
    capability = compute_capability()
    return capability is not None and capability < AMPERE
