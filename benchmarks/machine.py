"""What the figures were taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# What decides which products a core does quickly.
_TELLING = ("avx2", "avx512", "amx", "avx_vnni", "asimd", "bf16", "i8mm", "sve")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def flags() -> list[str]:
    """The processor's vector and matrix units, by the kernel's names."""
    words = {word for key in ("flags", "Features") for word in _cpuinfo(key).split()}
    return sorted(word for word in words if any(part in word for part in _TELLING))


def describe() -> dict[str, object]:
    """Processor, cores, units, system and Python.

    A virtual machine may say no more of its processor than "AMD EPYC": its family and model tell the generation.
    """
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    numbers = {key: _cpuinfo(key) for key in ("cpu family", "model")}
    return {
        "cpu": name,
        "family": ", ".join(f"{key.removeprefix('cpu ')} {number}" for key, number in numbers.items() if number),
        "cores": cores(),
        "flags": flags(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpuinfo(key: str) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")
