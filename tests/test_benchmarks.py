"""The benchmarks' own machinery: that they run, count and judge as they say. No figure is held to anything."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks import gpu_device, gpu_models, gpu_tables, quiet, random_requests, stream
from benchmarks.compilations import Compilations
from benchmarks.gpu_texts import texts
from jaxpool import LLM
from tests.tiny import SENTENCES, tiny_bert

ROOT = Path(__file__).parent.parent
# A tiny model's programs take longer to compile than all requests of a test.
FEW_PROGRAMS = {"data_parallel_size": 1, "max_num_batched_tokens": 64}


# Compilations


def test_compilations_are_heard_with_their_origin():
    add = jax.jit(lambda x: x + 1)
    with Compilations() as heard:
        for _ in range(3):
            add(np.float32(1))
        ((what, count),) = heard.found.items()
        assert count == 1
        assert "test_benchmarks.py" in what
    add(np.int32(1))
    assert heard.found.total() == 1


@pytest.mark.parametrize("name", ["embedder", "cross-encoder", "process reward model"])
def test_nothing_compiles_after_warm_up(name):
    outcome = random_requests.send(name, 170, **FEW_PROGRAMS)
    assert outcome.kinds.total() == 170
    assert set(outcome.kinds) <= set(random_requests.INSTANCES[name].kinds)
    assert outcome.programs[0] == outcome.compiled[0] > 0
    assert outcome.stood_still, outcome.origins


def test_compilations_are_found_and_said(monkeypatch, capsys):
    monkeypatch.setattr(LLM, "warmup", lambda self, *tasks: None)
    few = dict(random_requests.INSTANCES)
    few["classifier"] = few["classifier"].__class__(**vars(few["classifier"]) | {"settings": FEW_PROGRAMS})
    monkeypatch.setattr(random_requests, "INSTANCES", few)
    assert random_requests.main(["--requests", "5", "--instances", "classifier"]) == 1
    printed = capsys.readouterr().out
    assert "| 5 |" in printed
    assert "classifier: compiled 1 × " in printed
    assert "jaxpool/runner.py:" in printed


def test_requests_table():
    kinds = Counter({"embed": 1200, "score": 34})
    still = random_requests.Outcome("a", ("embed",), kinds, 7, 1.4, (4, 4), (4, 4), Counter())
    moved = random_requests.Outcome(
        "b", ("classify",), kinds, 7, 1.4, (4, 5), (4, 6), Counter({"f, from g.py:1 (h)": 2})
    )
    assert (still.stood_still, moved.stood_still) == (True, False)
    table = list(random_requests.lines([still, moved]))
    assert "| a | embed | 1,234 | 7 | 1 | 4 → 4 | 4 → 4 |" in table
    assert "| together | | 2,468 | 14 | 3 | +1 | +2 |" in table
    assert "| embed | 2,400 |" in table
    assert table[-1] == "\nb: compiled 2 × f, from g.py:1 (h)"


# The stream


def test_a_short_stream(tmp_path):
    many = stream.Texts(500, SENTENCES)
    with LLM(tiny_bert(tmp_path), **FEW_PROGRAMS) as llm:
        first, *seen = stream.marks(llm, many)
        assert llm.stats.texts == 500  # none was computed for another
    assert [mark.texts for mark in seen] == list(range(50, 501, 50))
    assert 1 <= first.drawn <= 500
    assert all(0 < mark.resident[0] <= mark.resident[1] for mark in seen)
    assert seen[-1].lead < 500


def test_verdict_on_a_stream():
    first = stream.First(0.1, 448)

    def judged(residents, paces, lead=4000):
        given = zip(residents, paces, strict=True)
        seen = [stream.Mark(i, (resident, resident), 1.0, pace, lead) for i, (resident, pace) in enumerate(given)]
        return [good for _, _, good in stream.verdict(first, seen)]

    assert judged([300] * 5, [10] * 5) == [True, True, True]
    assert judged([200, 300, 300, 300, 300], [10] * 5) == [True, True, True]  # as much as is let pass
    assert judged([300, 300, 300, 300, 401], [10] * 5) == [False, True, True]
    assert judged([300, 300, 300, 300, 199], [10] * 5) == [False, True, True]
    assert judged([300] * 5, [1, 10, 10, 7, 7]) == [True, False, True]  # the first line is warm-up
    assert judged([300] * 5, [10] * 5, lead=20_000) == [True, True, False]


# One GPU


def test_peaks_are_of_whole_names():
    assert gpu_device.peak("NVIDIA H200", "bfloat16") == 989e12
    assert gpu_device.peak("Tesla T4", "float16") == 65e12
    assert gpu_device.peak("Tesla T4", "bfloat16") is None
    assert gpu_device.peak("NVIDIA H100 PCIe", "bfloat16") is None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return gpu_models.directory("tiny", tmp_path_factory.mktemp("cache"))


def test_texts_of_so_many_tokens(tiny):
    made = texts(tiny, 16, 20)
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    assert {len(encoding.ids) for encoding in tokenizer.encode_batch(made)} == {16}
    assert len(set(made)) == 20
    assert made == texts(tiny, 16, 20)


def test_what_the_shapes_read(tiny):
    longest = {name: gpu_models.reads(shape) for name, shape in gpu_models.MODELS.items()}
    assert longest == {"xlm-r-large": 2048, "bge-base": 512, "qwen3-0.6b": 2048}
    (small,) = gpu_models.SMOKE.values()
    with LLM(tiny) as llm:
        assert llm.recipe.max_length == gpu_models.reads(small)
        assert llm.recipe.pooling == ("cls",)


def test_gpu_table():
    ours = {"model": "m", "length": "16", "engine": "jaxpool", "dtype": "bfloat16", "texts": 1000, "rate": 2000.0,
            "flops": 1e9, "peak": 1e13, "mfu": 0.2, "quality": {"lowest_cosine": 0.99991}}  # fmt: skip
    theirs = ours | {"engine": "torch bf16", "rate": 1000.0, "ratio": 2.0, "mfu": 0.1}
    failed = {"model": "m", "length": "16", "engine": "torch fp16", "dtype": "float16", "error": "OutOfMemory"}
    record = {"date": "2000-01-01T00:00", "device": "a GPU", "driver_version": "1.2", "versions": {"jax": "3"},
              "notes": ["a note"], "cells": [ours, theirs, failed]}  # fmt: skip
    table = list(gpu_tables.lines(record))
    assert table[0] == "2000-01-01, a GPU, driver 1.2, jax 3\n"
    assert table[1].startswith(
        "| model | tokens | texts a round | **jaxpool / torch bf16** | **jaxpool / torch fp16** |"
    )
    assert table[3] == "| m | 16 | 1,000 | **2.00** | – | 2000 | 1000 | – | 20.0% | 10.0% | – | 0.99991 | 0.99991 | – |"
    assert table[5:] == ["- MFU is of 10 TFLOP/s in bfloat16", "- a note", "- m, 16, torch fp16: OutOfMemory"]
    unknown = {name: value for name, value in ours.items() if name not in ("peak", "mfu")}
    table = list(gpu_tables.lines(record | {"notes": [], "cells": [unknown]}))
    assert table[1] == "| model | tokens | texts a round | jaxpool texts/s | jaxpool cos ≥ |"
    assert table[-1] == "- no MFU: the peak of a GPU is not known here"


def smoke(directory, *arguments, **environment):
    """`benchmarks.gpu --smoke`: what it printed, and its record."""
    file = directory / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--json", file, "--cache", directory, *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True)
    return ended.stdout, json.loads(file.read_text())


@pytest.mark.torch
def test_smoke_beside_torch(tmp_path):
    printed, record = smoke(tmp_path, "--peak", "1e12")
    cells = {(cell["length"], cell["engine"]): cell for cell in record["cells"]}
    assert set(cells) == {(length, name) for length in ("16", "64") for name in ("jaxpool", "torch bf16", "torch fp16")}
    for (_, name), cell in cells.items():
        assert len(cell["rates"]) == 5
        assert cell["mfu"] == pytest.approx(cell["flops"] * cell["rate"] / 1e12)
        assert cell["quality"]["lowest_cosine"] > 0.999
        assert ("ratio" in cell) == (name != "jaxpool")
    assert record["platform"] == "cpu"
    assert {"jax", "torch"} <= set(record["versions"])
    assert "**jaxpool / torch fp16**" in printed
    assert "- tiny: cosines are to torch fp32" in printed
    assert "- tiny: reads no more than 65 tokens" in printed


def test_smoke_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    printed, record = smoke(tmp_path, "--rounds", "2", PYTHONPATH=str(tmp_path))
    assert {cell["engine"] for cell in record["cells"]} == {"jaxpool"}
    assert "- tiny: jaxpool alone, there is no torch to compare it with" in printed
    assert "- tiny, torch bf16: ended with 1: ModuleNotFoundError" in printed
    assert "- tiny: cosines are to jaxpool fp32" in printed
    assert "- no MFU: the peak of cpu is not known here" in printed


def test_a_figure_is_taken_where_the_machine_is_never_quiet(monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr(quiet, "_busy", lambda: 1e3 * next(ticks))  # others take all cores, always
    monkeypatch.setattr(quiet, "_of", lambda group: 0.0)
    monkeypatch.setattr(quiet, "PATIENCE", 1.5)
    said = []
    assert quiet.undisturbed(1, lambda: "a figure", said.append) == "a figure"
    assert said[-1].endswith("kept all the same")
