"""Puts the compiler for a kind of chip that belongs to this environment's JAX into a directory beside it.

In the environment itself it would print start-up errors in every CPU program.

python tools/compiler_for.py tpu|gpu DIRECTORY
"""

import re
import subprocess
import sys
from importlib.metadata import requires, version


def tpu() -> list[str]:
    """libtpu, as JAX's own extra names it."""
    return [next(r.split(";")[0] for r in requires("jax") or () if re.match(r"libtpu\W", r))]


def gpu() -> list[str]:
    """The CUDA plugin and its compiler have JAX's own version; CUDA is not needed to compile."""
    return [f"{name}=={version('jax')}" for name in ("jax-cuda13-plugin", "jax-cuda13-pjrt")]


platform, directory = sys.argv[1:]
pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
sys.exit(subprocess.call([*pip, "--target", directory, *{"tpu": tpu, "gpu": gpu}[platform]()]))
