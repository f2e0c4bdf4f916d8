"""Several processes as one program: each gets the answers to its own texts; when one fails, all end, soon and clearly."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxpool import LLM, gather
from jaxpool.batch import Sequence
from jaxpool.hosts import tokens
from tests.several_hosts import DEVICES, LAYOUTS, TEXTS
from tests.tiny import tiny_bert, write_model

# Seconds within which all processes have to end, whatever one of them does. JAX itself gives a dead one 10 here.
SOON = 60
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
DECODER = SIZES | {"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "head_dim": 8}


def start(processes, scenario, model, out):
    """Runs a scenario; (exit status, stderr) of each process, and the seconds that the last one took."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"}
    command = [sys.executable, "-m", "tests.several_hosts", address, str(processes)]
    started = [
        subprocess.Popen(
            [*command, str(i), scenario, model, out / f"{i}.npz"], env=env, stderr=subprocess.PIPE, text=True
        )
        for i in range(processes)
    ]
    try:
        said = [process.communicate(timeout=500)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


@pytest.mark.parametrize(
    ("processes", "architecture", "family", "sizes"),
    [
        pytest.param(2, "Qwen3ForCausalLM", "qwen3", DECODER, id="2, a causal decoder"),
        pytest.param(4, "BertForSequenceClassification", "bert", SIZES | {"num_labels": 3}, id="4, a classifier"),
    ],
)
def test_each_gets_its_own_answers(processes, architecture, family, sizes, tmp_path):
    model = write_model(tmp_path / "model", architecture, family, **sizes)
    done = start(processes, "answers", model, tmp_path)
    assert all(status == 0 for status, _ in done), "\n".join(text for _, text in done)
    found = [np.load(tmp_path / f"{i}.npz") for i in range(processes)]
    with LLM(model, dtype="float32") as llm:
        wanted = [
            [o.outputs.data for o in llm.encode(texts, use_tqdm=False)] if texts else []
            for texts in (TEXTS[i] for i in range(processes))
        ]
    for name in LAYOUTS:
        for own, rows in zip(found, wanted, strict=True):
            assert len(own[name]) == len(rows)
            if rows:
                np.testing.assert_allclose(own[name], rows, atol=1e-5, err_msg=name)
    for own in found:  # gathered: the same in every process, in the order of the processes
        np.testing.assert_array_equal(own["all"], np.concatenate([f["rows of its own"] for f in found]))


@pytest.mark.parametrize("processes", [2, 4])
def test_calls_end_together_and_go_on(processes, tmp_path):
    done = start(processes, "errors", tiny_bert(tmp_path / "model"), tmp_path)
    assert all(status == 0 for status, _ in done), "\n".join(text for _, text in done)


def test_one_raises_and_all_end(tmp_path):
    begun = time.monotonic()
    done = start(4, "raises", tiny_bert(tmp_path / "model"), tmp_path)
    assert time.monotonic() - begun < SOON + 40  # four processes start and compile meanwhile
    for number, (status, text) in enumerate(done):
        assert status == 1
        assert ("ZeroDivisionError" if number == 1 else "HostError: process 1 has ended") in text


def test_one_is_killed_and_all_end(tmp_path):
    done = start(2, "killed", tiny_bert(tmp_path / "model"), tmp_path)
    assert done[1][0] == -signal.SIGKILL
    assert done[0][0] != 0
    assert "HostError" in done[0][1] or "JAX distributed service" in done[0][1] or "Gloo" in done[0][1]


def test_another_model_is_said(tmp_path):
    for status, text in start(2, "differs", tiny_bert(tmp_path / "model"), tmp_path):
        assert status == 1
        assert "has another engine" in text
        assert "21 tokens" in text


def test_sequences_as_bytes():
    sequences = [Sequence(np.arange(n, dtype=np.int32), (n,), second=n, adapter=2) for n in (1, 5, 300)]
    for before, after in zip(sequences, tokens.unpack(tokens.pack(sequences)), strict=True):
        np.testing.assert_array_equal(before.ids, after.ids)
        assert (after.owners, after.second, after.adapter) == ((), before.second, 2)
    assert tokens.unpack(tokens.pack([])) == []


def test_alone_nothing_is_gathered():
    rows = np.ones((3, 2))
    assert gather(rows) is rows
