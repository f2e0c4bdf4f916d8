"""Run by test_placement.py in a process of its own: the memory that loading takes beside the weights themselves.

python -m tests.loading_memory SMALL MODEL DEVICES : prints the bytes of the weights, and the most that was held beside them.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import jax

from jaxpool import placement
from jaxpool.placement import load_to_mesh, stored_bytes
from jaxpool.recipe import read_recipe
from jaxpool.sharding import make_mesh

# Seconds between two looks.
OFTEN = 0.002
# Bytes of the checkpoint that this stands for.
REAL = 16e9


def anonymous() -> int:
    """Bytes of this process that are no file's pages: those the system takes back when it needs them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main(small: str, model: str, devices: str) -> None:
    """Loads a small model, so that what JAX needs itself is there, then the model itself, and watches."""
    mesh = make_mesh(jax.local_devices(), int(devices))
    recipe = read_recipe(Path(model))
    # What counts as large, and what may be on its way, are made smaller as the model is.
    smaller = stored_bytes(recipe, "bfloat16") / REAL
    placement.LARGE, placement.ON_THE_WAY = int(placement.LARGE * smaller), int(placement.ON_THE_WAY * smaller)
    jax.block_until_ready(load_to_mesh(read_recipe(Path(small)), mesh, "bfloat16"))
    before, most, ended = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(OFTEN):
            most = max(most, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    params = jax.block_until_ready(load_to_mesh(recipe, mesh, "bfloat16"))
    ended.set()
    watcher.join()
    own = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
    print(own, most - before - own)


if __name__ == "__main__":
    main(*sys.argv[1:])
