"""The optional cache of compiled programs on disk: asked for by the user, never set at import."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jaxlib


def use_compile_cache(choice: bool | str | os.PathLike[str]) -> None:
    """Keeps compiled programs under `choice` (True: ~/.cache/jaxpool), in a folder of this jaxlib's own.

    The setting is JAX's, so it holds for the whole process. A cache left by another jaxlib can crash, hence
    the folder a version.
    """
    if choice is False:
        return
    root = Path("~/.cache/jaxpool").expanduser() if choice is True else Path(choice).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(root / f"jaxlib-{jaxlib.__version__}"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
