"""The token budget by platform and free memory, and the memory plan."""

from dataclasses import dataclass, fields, replace

import pytest

from jaxpool import memory
from jaxpool.batching import make_ladder
from jaxpool.hub import MINILM, resolve
from jaxpool.models import mpnet, post_norm
from jaxpool.recipe import read_recipe

DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def recipe():
    return read_recipe(resolve(MINILM))


@dataclass
class Device:
    platform: str
    limit: int | None = None
    used: int = 0

    def memory_stats(self):
        return None if self.limit is None else {"bytes_limit": self.limit, "bytes_in_use": self.used}


def test_the_budget_follows_the_free_memory(recipe):
    assert memory.token_budget(recipe, "float32", Device("cpu")) == memory.CPU_BUDGET
    assert memory.token_budget(recipe, "bfloat16", Device("tpu")) == memory.CHIP_BUDGET
    assert memory.token_budget(recipe, "bfloat16", Device("tpu", 16 * 2**30)) == memory.CHIP_BUDGET
    tight = {dtype: memory.token_budget(recipe, dtype, Device("gpu", 600 * 2**20, 200 * 2**20)) for dtype in DTYPES}
    # Scores of float32 are written out on GPUs; those of bfloat16 stay in their kernel.
    assert recipe.max_length <= tight["float32"] < tight["bfloat16"] == memory.CHIP_BUDGET
    assert memory.token_budget(recipe, "bfloat16", Device("gpu", 2**20)) <= recipe.max_length


def test_scores_that_are_written_out(recipe):
    def queries(dtype, row, platform, **config):
        return memory._queries_written_out(replace(recipe.config, **config), dtype, row, platform)

    assert queries("bfloat16", 512, "tpu") == queries("bfloat16", 128, "gpu") == 0
    assert queries("bfloat16", 64, "gpu") == 64
    assert queries("float32", 2048, "gpu") == queries("bfloat16", 2048, "cpu") == 128
    assert queries("bfloat16", 512, "gpu", num_heads=1) == 128  # of 384 features
    assert (
        memory._queries_written_out(object(), "bfloat16", 512, "gpu") == 0
    )  # an architecture of one's own may say nothing
    sizes = {field.name: getattr(recipe.config, field.name) for field in fields(post_norm.Config)}
    biased = mpnet.Config(**sizes, position_rows=514, bucket_rows=32)
    assert memory._queries_written_out(biased, "bfloat16", 512, "gpu") == 512
    assert memory._queries_written_out(biased, "bfloat16", 512, "tpu") == 512


def test_the_plan_counts_what_the_checkpoint_holds(recipe):
    ladder = make_ladder(recipe.max_length, 512)
    plan = memory.memory_plan(recipe, "float32", ladder)
    # all-MiniLM-L6-v2 has 22,713,216 parameters with the pooler (384 · 384 + 384) that no embedding needs.
    assert plan.parameters == 22_713_216 - 384 * 384 - 384
    assert plan.weights == 4 * plan.parameters
    assert memory.memory_plan(recipe, "bfloat16", ladder).weights == 2 * plan.parameters
    assert plan.total == plan.weights + plan.activations > plan.weights
    assert plan.describe()["total"].endswith("MiB for each further stream")  # which reads the same weights
    on_chip = memory.memory_plan(recipe, "float32", ladder, platform="tpu")
    assert on_chip.describe()["total"].endswith("MiB a device")
