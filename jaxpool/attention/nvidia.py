"""Which NVIDIA GPU a program will run on, as far as this process can tell."""

from __future__ import annotations

import jax

# The first whose matrix units multiply bfloat16.
AMPERE = (8, 0)
TOO_OLD = "the GPU is older than NVIDIA's Ampere, or another maker's"


def compute_capability() -> tuple[int, ...] | None:
    """NVIDIA's version of the GPUs of the mesh in context (without one, of the first), () for other makers' ("gfx90a").

    None where no such GPU is here: the program is compiled for another machine.
    """
    wanted = jax.sharding.get_abstract_mesh().abstract_device
    try:
        gpus = jax.local_devices(backend="gpu")
    except RuntimeError:
        return None
    own = [gpu for gpu in gpus if wanted is None or gpu.device_kind == wanted.device_kind]
    if not own:
        return None
    version = getattr(own[0], "compute_capability", "")
    return tuple(map(int, version.split("."))) if version.replace(".", "").isdigit() else ()


def too_old() -> bool:
    """Whether there is a GPU here and it has no matrix unit for bfloat16 that we know how to use."""
    capability = compute_capability()
    return capability is not None and capability < AMPERE
