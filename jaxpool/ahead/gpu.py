"""NVIDIA's GPUs that are not there, for XLA's compiler in JAX's CUDA plugin (docs/gpu.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from jax.experimental import topologies

from jaxpool.slices import Slice

PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
# Kernels are compiled for a version of CUDA and of cuDNN; these are what the plugin of JAX 0.10 was built with.
CUDA, CUDNN = (13, 0, 0), (9, 12, 0)


@dataclass(frozen=True)
class Target:
    """A GPU as the compiler sees it. The figures are NVIDIA's: data sheets, and the limits of a compute capability.

    Attributes:
        name: JAX's `device_kind`.
        capability: its compute capability.
        cores: streaming multiprocessors.
        units: float32 units of each.
        threads: that each can hold.
        shared: KiB of shared memory of each, of which a block may have all but one.
        cache: MiB of the second level's.
        bandwidth: bytes/s of its memory.
        memory: GiB.
        clock: GHz.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    units: int
    threads: int
    shared: int
    cache: int
    bandwidth: float
    memory: float
    clock: float

    @property
    def text(self) -> str:
        """In the compiler's words (a GpuTargetConfigProto)."""
        device = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 48 * 2**10,
            "shared_memory_per_core": self.shared * 2**10,
            "shared_memory_per_block_optin": (self.shared - 1) * 2**10,
            "threads_per_core_limit": self.threads,
            "core_count": self.cores,
            "fpus_per_core": self.units,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "memory_bandwidth": int(self.bandwidth),
            "l2_cache_size": self.cache * 2**20,
            "clock_rate_ghz": self.clock,
            "device_memory_size": int(self.memory * 2**30),
            "registers_per_core_limit": 2**16,
            "registers_per_block_limit": 2**16,
        }
        lines = [f"{key}: {value}" for key, value in device.items()]
        lines.append(f"cuda_compute_capability {{ major: {self.capability[0]} minor: {self.capability[1]} }}")
        return "\n".join(
            (
                f"gpu_device_info {{ {' '.join(lines)} }}",
                'platform_name: "CUDA"',
                f"dnn_version_info {{ {_version(CUDNN)} }}",
                f"runtime_version {{ {_version(CUDA)} }}",
                f'device_description_str: "{self.name}"',
            )
        )


# By the names of `slices.CHIPS`.
TARGETS: Mapping[str, Target] = {
    "l4": Target("NVIDIA L4", (8, 9), 58, 128, 1536, 100, 48, 300e9, 22.5, 2.04),
    "a100-40": Target("NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, 2048, 164, 40, 1555e9, 40, 1.41),
    "a100-80": Target("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 2048, 164, 40, 2039e9, 80, 1.41),
    "h100": Target("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 2048, 228, 50, 3352e9, 80, 1.98),
    "h200": Target("NVIDIA H200", (9, 0), 132, 128, 2048, 228, 50, 4800e9, 141, 1.98),
}


def missing() -> str | None:
    """Why nothing can be compiled for GPUs here, or None."""
    if find_spec("jax_plugins") and any(find_spec(plugin) for plugin in PLUGINS):
        return None
    return "JAX's CUDA plugin is not installed: see docs/gpu.md"


def devices(where: Slice) -> Sequence[Any]:
    """All GPUs of a slice, on one host."""
    target = TARGETS[where.kind].text
    return topologies.get_topology_desc(platform="cuda", topology=f"1x1x{where.devices}", target_config=target).devices


def _version(numbers: tuple[int, ...]) -> str:
    return " ".join(f"{name}: {number}" for name, number in zip(("major", "minor", "patch"), numbers, strict=True))
