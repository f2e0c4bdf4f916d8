"""Run by test_sharding.py in a process of its own with 8 simulated devices: one model under many layouts.

python -m tests.sharded MODEL OUT.npz TEXTS… : what each layout answers, by its name.
"""

from __future__ import annotations

import json
import sys

import jax
import numpy as np

from benchmarks import hlo
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


def gathered(llm: LLM) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of the three-dimensional arrays that the largest program gathers over devices, and of its hidden states."""
    runner = llm.engine.runner
    shape = max(runner.ladder.shapes, key=lambda shape: shape.area)
    replica = runner.replicas[0]
    text = replica.compile(llm.task, shape).as_text()
    shapes = [sizes for op, results in hlo.instructions(text) if op.startswith("all-gather") for sizes in results]
    rows = shape.rows // replica.mesh.shape["data"]
    hidden = (rows, shape.tokens, llm.recipe.config.hidden_size)
    return np.array([s for s in shapes if len(s) == 3] or [(0, 0, 0)]), np.array(hidden)


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
            if layout.get("sequence_parallel"):
                found["gathered"], found["hidden"] = gathered(llm)
        found[name] = np.concatenate([answer.outputs.data.ravel() for answer in answers])
        found[f"{name} bytes"] = np.array([plan.weights, held])
    np.savez(out, **found)
    print(json.dumps(sorted(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
