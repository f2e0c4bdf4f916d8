"""The device that JAX computes on, in words, and what its matrix units can do. `python -m benchmarks.gpu_device`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks import machine

BF16, FP16 = "bfloat16", "float16"
# FLOP/s of dense products that accumulate in float32, as the makers' data sheets have them, by JAX's name of the
# device. Of one chip the boards differ (SXM, PCIe, NVL), so a name must be whole.
_H100 = _H200 = {BF16: 989e12, FP16: 989e12}
_A100 = {BF16: 312e12, FP16: 312e12}
_L4 = {BF16: 121e12, FP16: 121e12}
_T4 = {FP16: 65e12}  # it has no bf16 unit
PEAKS: Mapping[str, Mapping[str, float]] = {
    "NVIDIA H200": _H200,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA L4": _L4,
    "Tesla T4": _T4,
}


def peak(device: str, dtype: str) -> float | None:
    """FLOP/s of a device in a dtype; None where they are not known."""
    return PEAKS.get(device, {}).get(dtype)


def describe() -> dict[str, Any]:
    """Platform, device and driver.

    JAX is asked in a process of its own: one that had started it would hold memory that is to be measured.

    Raises:
        RuntimeError: JAX finds no device; the message is its last line.
    """
    asked = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True)
    if asked.returncode:
        raise RuntimeError((asked.stderr.strip().splitlines() or ["JAX did not start"])[-1])
    return json.loads(asked.stdout.splitlines()[-1]) | _driver() | {"host": machine.describe()}


def _driver() -> dict[str, str]:
    """The driver's version and its limits, where there is NVIDIA's tool to ask."""
    keys = ("driver_version", "memory.total", "power.limit")
    if not (tool := shutil.which("nvidia-smi")):
        return {}
    said = subprocess.run(
        [tool, f"--query-gpu={','.join(keys)}", "--format=csv,noheader"], capture_output=True, text=True
    )
    lines = said.stdout.splitlines()
    return dict(zip(keys, lines[0].split(", "), strict=True)) if said.returncode == 0 and lines else {}


def main() -> None:
    """Prints JAX's first device as JSON."""
    import jax

    device = jax.devices()[0]
    print(json.dumps({"platform": device.platform, "device": device.device_kind}))


if __name__ == "__main__":
    main()
