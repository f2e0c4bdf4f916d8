"""TPUs that are not there, for XLA's compiler in libtpu (docs/tpu.md)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from jax.experimental import topologies

from jaxpool.slices import Slice

# What libtpu asks of the machine that it believes to run on.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_LOG_DIR": "disabled",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def missing() -> str | None:
    """Why nothing can be compiled for TPUs here, or None."""
    if "TPU_LIBRARY_PATH" in os.environ or find_spec("libtpu"):
        return None
    return "libtpu is not installed, and TPU_LIBRARY_PATH names no libtpu.so: see docs/tpu.md"


def devices(where: Slice) -> Sequence[Any]:
    """All chips of a slice. `jax.errors.JaxRuntimeError`: libtpu does not know it."""
    # A single chip is less than the host that libtpu assumes by default.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if where.shape == "1x1" else {}
    return topologies.get_topology_desc(str(where), "tpu", **bounds).devices
