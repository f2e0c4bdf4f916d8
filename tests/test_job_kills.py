"""A job that is killed at any moment and resumed writes, to the byte, what it would have written undisturbed."""

import gzip
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxpool import LLM
from jaxpool.corpus.embedding import Embedder
from jaxpool.corpus.shards import Settings, open_directory, prepare_shards
from jaxpool.corpus.stopping import Stop
from tests.tiny import tiny_bert

# Of the job whose every state is resumed, and of the one in processes, which must not be over before they are killed.
SMALL, LARGE = (400, 90), (2400, 500)

pytestmark = pytest.mark.once


def contents(directory):
    """Every file with its bytes."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}


def text(i):
    return f"{i} " + "the quick brown fox jumps over a lazy dog " * (i % 5)


def make_inputs(folder, count):
    """Three kinds of file with the same columns, whose borders are not the shards'."""
    rows = [{"id": i, "text": text(i), "kind": ("a", "b", None)[i % 3]} for i in range(count)]
    first, second = count // 3 - 5, count * 4 // 5
    (folder / "0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:first]))
    pq.write_table(pa.Table.from_pylist(rows[first:second]), folder / "1.parquet", row_group_size=count // 9)
    with gzip.open(folder / "2.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[second:])
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("small"), SMALL[0])


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("large"), LARGE[0])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"), positions=32)  # few shapes to compile, in each process


@pytest.fixture(scope="module")
def llm(model):
    with LLM(model) as engine:
        yield engine


def embed(llm, inputs, output, shard_rows, *, resume=False, **settings):
    chosen = Settings(shard_rows=shard_rows, **settings)
    files, directory = open_directory([inputs], output, chosen)
    with directory.locked():
        job = prepare_shards(files, directory, chosen, resume=resume)
        return "" if job is None else job.run(Embedder(llm), Stop(20))


_watching = []


def _hook(event, arguments):
    if _watching and event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "open"):
        _watching[-1](event)


sys.addaudithook(_hook)


def snapshots(output, folder, run):
    """Runs, and copies the output before each step that changes a directory: what a kill there would leave."""
    taken = []

    def take(event):
        watch = _watching.pop()  # copying is no step
        try:
            state = contents(output) if output.exists() else None
            if not taken or taken[-1] != state:
                taken.append(state)
        finally:
            _watching.append(watch)

    _watching.append(take)
    try:
        run()
    finally:
        _watching.pop()
    for number, state in enumerate(taken):
        for name, content in (state or {}).items():
            file = folder / str(number) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        if state is not None:
            (folder / str(number)).mkdir(exist_ok=True, parents=True)
    return [folder / str(number) for number in range(len(taken))]


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_every_state_that_a_kill_can_leave_is_resumed_to_the_same_bytes(tmp_path, llm, small, format):
    rows, shard = SMALL
    whole = tmp_path / "whole"
    states = snapshots(whole, tmp_path / "states", lambda: embed(llm, small, whole, shard, format=format))
    expected = contents(whole)
    assert sorted(expected) == ["manifest.json", *(f"shards/{k:06}.{format}" for k in range(5))]
    manifest = json.loads(expected["manifest.json"])
    assert manifest["state"] == "complete"
    assert manifest["totals"]["vectors"] == rows
    assert len(states) >= 20
    assert {len(list((state / "shards").glob("0*"))) for state in states} == {0, 1, 2, 3, 4, 5}
    for state in states:
        embed(llm, small, state, shard, resume=True, format=format)
        assert contents(state) == expected, state


def test_a_shard_that_went_missing_is_made_again(tmp_path, llm, small):
    shard = SMALL[1]
    output = tmp_path / "out"
    embed(llm, small, output, shard)
    expected = contents(output)
    (output / "shards" / "000001.parquet").unlink()
    (output / "shards" / "000003.parquet").write_bytes(b"cut off")
    assert embed(llm, small, output, shard, resume=True).startswith(f"{2 * shard} texts")
    assert contents(output) == expected
    assert embed(llm, small, output, shard, resume=True) == ""
    assert contents(output) == expected


# A process without JAX that forks runs with a fake model and kills each after a random time, until one is through.
KILLER = """
import os, random, signal, sys, time
from tests.job_fakes import FakeLLM, run, use_fake_fingerprint
use_fake_fingerprint()
import pyarrow.parquet
assert "jax" not in sys.modules
inputs, output, shard = sys.argv[1], sys.argv[2], int(sys.argv[3])
draw = random.Random(0)
kills = 0
while True:
    child = os.fork()
    if child == 0:
        run([inputs], output, resume=True, shard_rows=shard, llm=FakeLLM(lambda: time.sleep(0.02)))
        os._exit(0)
    time.sleep(draw.uniform(0.0, 0.1) * (1 + kills / 20))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, status
        print(kills)
        break
    kills += 1
    assert kills < 500
"""


def test_killed_at_random_moments(tmp_path, large):
    clean = "from tests.job_fakes import *; import sys; use_fake_fingerprint(); run([sys.argv[1]], sys.argv[2], shard_rows=50)"
    subprocess.run([sys.executable, "-c", clean, large, tmp_path / "whole"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", KILLER, large, tmp_path / "killed", "50"], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) >= 20
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert pq.read_table(tmp_path / "killed" / "shards")["embedding"].type.list_size == 8


def command(model, inputs, output, *more):
    arguments = [
        "embed",
        model,
        inputs,
        "-o",
        f"{output}/",
        "--shard-rows",
        LARGE[1],
        "--resume",
        "--compile-cache",
        model / "cache",
        *more,
    ]
    return [sys.executable, "-m", "jaxpool", *map(str, arguments)]


def wait_for_shard(process, output, number, suffix="parquet"):
    while not (output / "shards" / f"{number:06}.{suffix}").exists():
        assert process.poll() is None, "the run was over too soon"
        time.sleep(0.001)


def test_a_process_that_is_killed(tmp_path, llm, model, large):
    """The command line itself, killed twice on its way, against a run of another process."""
    output, draw = tmp_path / "out", random.Random(1)
    for shard in (0, 2):
        process = subprocess.Popen(command(model, large, output), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_for_shard(process, output, shard)
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert json.loads((output / "manifest.json").read_text())["state"] == "incomplete"
    for folder in (output, tmp_path / "whole"):
        subprocess.run(command(model, large, folder), check=True, capture_output=True)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (output, tmp_path / "whole")]
    assert manifests[0]["totals"]["vectors"] == LARGE[0]
    assert manifests[0] == manifests[1]
    assert contents(output) == contents(tmp_path / "whole")
    table = pq.read_table(output / "shards")
    assert table["id"].to_pylist() == list(range(LARGE[0]))
    expected = llm.embed_array([text(i) for i in range(LARGE[0])])
    found = table["embedding"].combine_chunks().values.to_numpy().reshape(LARGE[0], -1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_sigterm(tmp_path, model, large):
    output = tmp_path / "out"
    more = ("--log-json", tmp_path / "log.jsonl")
    process = subprocess.Popen(command(model, large, output, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_shard(process, output, 0)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - asked < 25
    assert process.returncode == 0, err
    assert b"rows remain: --resume goes on" in out
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["state"] == "incomplete"
    shards = len(manifest["shards"])
    assert 1 <= shards < 5
    assert manifest["totals"]["rows"] == LARGE[1] * shards
    assert sorted(p.name for p in (output / "shards").iterdir()) == [f"{k:06}.parquet" for k in range(shards)]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in log if line["event"] != "progress"] == ["start", *["shard"] * shards, "stopped"]
    assert log[-1]["rows_left"] == LARGE[0] - LARGE[1] * shards
    shutil.copytree(output, tmp_path / "again")
    for folder in (tmp_path / "again", tmp_path / "whole"):  # not here: this process may have other devices
        subprocess.run(command(model, large, folder), check=True, capture_output=True)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
