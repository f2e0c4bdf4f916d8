"""Run by test_sharding.py in a process of its own with 8 simulated devices: one model under many layouts.

python -m tests.sharded MODEL OUT.npz TEXTS… : what each layout answers, by its name.
"""

from __future__ import annotations

import json
import sys

import jax
import numpy as np

from jaxpool import LLM

# Name -> LLM's arguments.
LAYOUTS = {
    "dp8": {"data_parallel_size": 8},
    "tp4": {"data_parallel_size": 1, "tensor_parallel_size": 4},
    "dp4 tp2": {"tensor_parallel_size": 2},
    "fsdp8": {"data_parallel_size": 8, "fsdp": True},
    "fsdp4 tp2": {"data_parallel_size": 4, "tensor_parallel_size": 2, "fsdp": True},
    "dp2 tp4 by sequence": {"tensor_parallel_size": 4, "sequence_parallel": True},
    "int8 fsdp2 tp4": {"tensor_parallel_size": 4, "fsdp": True, "quantization": "int8"},
}


def main(model: str, out: str, *texts: str) -> None:
    """Answers the texts under every layout and keeps what each device holds beside them."""
    found = {}
    for name, layout in LAYOUTS.items():
        with LLM(model, dtype="float32", **layout) as llm:
            answers = llm.encode(list(texts), use_tqdm=False)
            plan = llm.memory_plan()
            replica = llm.engine.runner.replicas[0]
            device = replica.mesh.devices.flat[0]
            leaves = jax.tree.leaves(replica._params)
            held = sum(
                shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards if shard.device == device
            )
        found[name] = np.concatenate([answer.outputs.data.ravel() for answer in answers])
        found[f"{name} bytes"] = np.array([plan.weights, held])
    np.savez(out, **found)
    print(json.dumps(sorted(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
