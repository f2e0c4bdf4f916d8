"""Compiled programs on disk: the next process compiles none of them; one process has one such directory at a time."""

import json
import subprocess
import sys
from pathlib import Path

import jaxlib
import pytest

from tests.tiny import tiny_bert

# In processes of their own: the setting is JAX's, for the whole process.
CODE = """
import json, sys
import jax
from jaxpool import LLM

heard = []
jax.monitoring.register_event_listener(lambda event, **_: heard.append(event.rpartition("/")[2]))
model, started, *caches = sys.argv[1:]
if started == "True":
    (jax.numpy.ones(3) + 1).block_until_ready()  # JAX looks for its cache when it first compiles
found = []
for cache in caches:
    heard.clear()
    with LLM(model, compile_cache=cache, max_num_batched_tokens=64) as llm:
        llm.warmup()
    found.append([llm.stats.compilations, heard.count("cache_misses"), heard.count("cache_hits")])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


def warm_up(model, *caches, started=False):
    """[programs, misses, hits] with each cache in turn, all in one process, and its stderr."""
    command = [sys.executable, "-c", CODE, model, str(started), *caches]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def programs(cache):
    """What is in the folder of this jaxlib's, the only one in a cache."""
    (folder,) = cache.iterdir()
    assert folder.name == f"jaxlib-{jaxlib.__version__}"
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*-cache")}


@pytest.mark.parametrize("started", [False, True], ids=["", "JAX had compiled before"])
def test_a_second_process_compiles_nothing(model, tmp_path, started):
    ((count, misses, hits),), _ = warm_up(model, tmp_path / "cache", started=started)
    assert (misses >= count, hits) == (True, 0)
    kept = programs(tmp_path / "cache")
    assert len(kept) == misses
    ((again, misses, hits),), _ = warm_up(model, tmp_path / "cache", started=started)
    assert (again, misses, hits) == (count, 0, len(kept))
    assert programs(tmp_path / "cache") == kept


def test_the_last_directory_of_a_process_is_used_and_that_is_said(model, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    found, said = warm_up(model, first, first, second)
    count = len(programs(first))
    assert [(misses, hits) for _, misses, hits in found] == [(count, 0), (0, count), (count, 0)]
    assert len(programs(second)) == count
    (line,) = [line for line in said.splitlines() if "compile_cache" in line]
    assert line.index(str(second)) < line.index(str(first))
