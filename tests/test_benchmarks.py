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

from benchmarks import (
    code,
    gpu_device,
    gpu_models,
    gpu_tables,
    host,
    peers,
    quiet,
    random_requests,
    roofline,
    rounds,
    run,
    serve,
    stream,
    tables,
)
from benchmarks.compilations import Compilations
from benchmarks.engines import vllm, vllm_compiled
from benchmarks.gpu_texts import texts
from benchmarks.results import Results
from benchmarks.workers import SkippedError, Worker
from jaxpool import LLM, native
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


@pytest.mark.parametrize("name", ["embedder", "embedder of pictures", "cross-encoder", "process reward model"])
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


# Beside the peers


RATES = {("jaxpool", "int8"): 600.0, ("jaxpool", "bfloat16"): 400.0, ("onnxruntime", "int8"): 200.0}


class Played:
    """A worker that computes nothing: as fast as its file and dtype say, in texts/s or GFLOP/s."""

    def __init__(self, file, python=None, log=None, rate=None):
        self.file, self.rate, self.group, self.asked = file, rate, os.getpid(), []

    def ask(self, what, **values):
        self.asked.append((what, values))
        if what == "load":
            self.rate = RATES.get((self.file, values["dtype"]), 300.0)
            return {"versions": {self.file: "1"}}
        if what == "measure":
            return {"rate": self.rate}
        if "save" in values:
            np.save(values["save"], np.ones((len(values["texts"]), 2), np.float32))
        return {"seconds": len(values["texts"]) / self.rate}

    def end(self):
        self.asked.append(("end", {}))


@pytest.fixture
def at_once(monkeypatch):
    """No figure waits for a quiet machine; two streams."""
    monkeypatch.setattr(quiet, "PATIENCE", 0)
    monkeypatch.setattr(rounds, "cores", lambda: 2)


BERT = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
        "hidden_act": "gelu", "model_type": "bert"}  # fmt: skip


def compare(tmp_path, rates, tokens, seconds):
    """A comparison after two rounds, and how many texts each engine had in each round."""
    sample = rounds.Sample("m", "mixed", [str(i) for i in range(len(tokens))], tokens)
    workers = {name: Played(name, rate=rate) for name, rate in rates.items()}
    comparison = rounds.Comparison(sample, "float32", workers, seconds)
    comparison.run(2, BERT, tmp_path)
    sizes = {
        name: [len(asked["texts"]) for what, asked in worker.asked if what == "encode"][-2:]
        for name, worker in workers.items()
    }
    return comparison, sizes


def test_a_round_fills_the_streams_batches(tmp_path, at_once):
    """8 batches of 512 tokens for each of two streams, though the slower engine takes 2 s for them, not 0.5."""
    comparison, sizes = compare(tmp_path, {"jaxpool": 100.0, "onnxruntime": 50.0}, [80] * 500, 0.5)
    fewest = -(-8 * 512 * 2 // 80)
    assert sizes == {"jaxpool": [fewest, fewest], "onnxruntime": [fewest, fewest]}
    assert comparison.cells["jaxpool"]["texts"] == fewest
    assert comparison.cells["jaxpool"]["note"] == (
        f"{fewest} of 500 texts, 8 batches a stream; onnxruntime takes longer than asked"
    )
    assert comparison.cells["onnxruntime"]["ratio"] == pytest.approx(2)


def test_a_round_takes_as_long_as_asked(tmp_path, at_once):
    comparison, sizes = compare(tmp_path, {"jaxpool": 100.0, "onnxruntime": 50.0}, [80] * 500, 6.0)
    assert sizes["jaxpool"] == [300, 300]
    assert "as many as the slowest (onnxruntime) has time for" in comparison.cells["jaxpool"]["note"]
    comparison, sizes = compare(tmp_path, {"jaxpool": 100.0, "onnxruntime": 50.0}, [80] * 20, 6.0)
    assert sizes["jaxpool"] == [20, 20]
    assert "note" not in comparison.cells["jaxpool"]


def test_only_what_is_hopelessly_slow_is_left_out(tmp_path, at_once):
    rates = {"jaxpool": 100.0, "vllm": 21.0, "onnxruntime": 20.0}
    comparison, sizes = compare(tmp_path, rates, [80] * 500, 0.5)  # 103 texts in 5 s at most
    assert comparison.cells["onnxruntime"] == {"left_out": "left out, 20 texts/s at the probe"}
    assert sizes["vllm"] == [103, 103]
    assert "left_out" not in compare(tmp_path, rates, [80] * 500, 0.6)[0].cells["onnxruntime"]


def measured(tmp_path, monkeypatch, *more):
    """`benchmarks.peers` over one cell of int8, all engines played; its file's cells by engine, and who was started."""
    started = []

    def start(file, python, log):
        started.append(Played(file))
        return started[-1]

    monkeypatch.setattr(peers, "Worker", start)
    arguments = ["peers", "--models", "minilm", "--lengths", "short", "--dtypes", "int8", "--rounds", "2", *more]
    files = ["--json", tmp_path / "peers.json", "--cache", tmp_path / "cache"]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in (*arguments, *files)])
    peers.main()
    cells = json.loads((tmp_path / "peers.json").read_text())
    return {cell["engine"]: cell for cell in cells}, started


def test_int8_is_measured_beside_its_own_bfloat16(tmp_path, monkeypatch, at_once, capsys):
    cells, started = measured(tmp_path, monkeypatch)
    loads = [(worker.file, asked["dtype"]) for worker in started for what, asked in worker.asked if what == "load"]
    assert ("jaxpool", "int8") in loads
    assert ("jaxpool", "bfloat16") in loads
    texts_of = {
        name: [asked["texts"] for what, asked in worker.asked if what == "encode" and len(asked["texts"]) > 32]
        for worker in started
        if (name := (worker.file, worker.rate)) in {("jaxpool", 600.0), ("jaxpool", 400.0)}
    }
    assert len(texts_of["jaxpool", 600.0]) == 2
    assert texts_of["jaxpool", 600.0] == texts_of["jaxpool", 400.0]
    own = cells["jaxpool_bfloat16"]
    assert (own["dtype"], own["ratio"]) == ("int8", pytest.approx(1.5))
    table = capsys.readouterr().out.splitlines()
    heads = next(line for line in table if "fastest peer" in line).split(" | ")
    row = next(line for line in table if line.startswith("| minilm | short")).split(" | ")
    assert row[heads.index("× own bf16")] == "1.50"
    assert row[heads.index("fastest peer")] == "ONNX Runtime"
    assert row[heads.index("**ratio**")] == "**3.00**"
    assert "own bf16 |" not in [line for line in table if line.startswith("| model")][1]


def test_other_code_is_measured_again(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(code, "mark", lambda: "old")
    first, _ = measured(tmp_path, monkeypatch)
    assert {cell["code"] for cell in first.values()} == {"old"}
    assert measured(tmp_path, monkeypatch)[1] == []
    monkeypatch.setattr(code, "mark", lambda: "new")
    kept, started = measured(tmp_path, monkeypatch, "--keep-old")
    assert (kept, started) == (first, [])
    again, _ = measured(tmp_path, monkeypatch)
    assert {cell["code"] for cell in again.values()} == {"new"}
    assert set(again) == set(first)


def test_cells_without_a_mark_are_older_and_errors_replace_no_figure(tmp_path):
    file = tmp_path / "peers.json"
    machine = {"cpu": "c", "cores": 2, "flags": ["avx2"]}
    cell = {"machine": machine, "model": "m", "length": "short", "dtype": "int8", "engine": "jaxpool", "rate": 1.0}
    file.write_text(json.dumps([cell]))
    now = cell | {"code": "now"}
    assert not Results(file).done(now)
    assert Results(file, keep_old=True).done(now)
    results = Results(file)
    results.put(now | {"error": "died"})
    assert list(results) == [cell]
    results.put(now)
    assert Results(file).done(now)
    # One name, one set of units, and another generation of CPU.
    other = now | {"machine": machine | {"family": "family 23, model 1"}}
    assert not Results(file).done(other)
    results.put(other)
    assert list(results) == [now, other]


def test_the_mark_is_of_the_packages_files(tmp_path):
    for name in ("jaxpool/a.py", "native/b.cc", "converters/c.py", "benchmarks/d.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    first = code.mark(tmp_path)
    (tmp_path / "benchmarks/d.py").write_text("other")
    (tmp_path / "jaxpool/a.pyc").write_text("compiled")
    assert code.mark(tmp_path) == first
    marks = {first}
    for name in ("jaxpool/a.py", "native/b.cc", "converters/c.py"):
        (tmp_path / name).write_text("other")
        marks.add(code.mark(tmp_path))
    assert len(marks) == 4
    assert code.mark() != first


def limits(ours, **products):
    """A cell's share and limit as the table has them; a text has 1 GFLOP."""
    machine = {"cpu": "c", "cores": 2, "flags": ["avx2"]}
    facts = {"machine": machine, "date": "2000-01-01", "model": "minilm", "length": "short", "dtype": "float32"}
    cell = facts | {"engine": "jaxpool", "texts": 9, "tokens": 15.0, "flops": 1e9} | ours
    bounds = [facts | {"engine": f"products_{name}", "rate": rate} for name, rate in products.items()]
    row = next(line for line in tables.lines([cell, *bounds], peers.ORDER) if line.startswith("| minilm"))
    return row.strip("| ").split(" | ")[-3:]


def test_what_limits_a_cell():
    own = {"rate": 90.0, "code": "now"}
    assert limits(own, torch=50.0, jax=60.0, jaxpool=100.0) == ["100 = 100 texts/s", "90%", "products"]
    assert limits(own, torch=50.0, jaxpool=150.0)[1:] == ["60%", "products, then the rest"]
    assert limits(own, jaxpool=300.0)[1:] == ["30%", "the rest"]
    assert limits({"rate": 90.0}, torch=60.0)[1:] == ["150%", "–"]  # from before our own were among them
    assert limits(own) == ["–", "–", "–"]


def published(page):
    """The rows of a page's tables of peers, each by its columns."""
    heads = None
    for line in page.splitlines():
        values = line.strip("| ").split(" | ") if line.startswith("|") else []
        if not values:
            heads = None
        elif "fastest peer" in values:
            heads = values
        elif heads and not line.startswith("|--"):
            yield dict(zip(heads, values, strict=True))


def test_published_tables_are_of_the_kept_cells():
    columns = ("length", "tokens", "dtype", "texts", "**ratio**", "fastest peer")
    kept = "\n".join(tables.lines(Results(ROOT / "docs" / "peers.json"), peers.ORDER))
    cells = {tuple(row[column] for column in columns) for row in published(kept)}
    rows = list(published((ROOT / "docs" / "performance.md").read_text()))
    assert len(rows) > 50
    assert {tuple(row[column].replace(",", "") for column in columns) for row in rows} <= cells


@pytest.mark.parametrize("dtype", peers.DTYPES)
def test_our_own_products_alone(dtype, tmp_path):
    worker = Worker("products_jaxpool", sys.executable, tmp_path / "log")
    try:
        asked = {"model": "", "dtype": dtype, "threads": 2, "cache": str(tmp_path)}
        if not native.exist():
            with pytest.raises(SkippedError, match="no kernels"):
                worker.ask("load", **asked)
            return
        assert "jaxlib" in worker.ask("load", **asked)["versions"]
        assert worker.ask("measure", shapes=roofline.products(BERT))["rate"] > 0
    finally:
        worker.end()


def test_vllm_with_and_without_torch_compile(monkeypatch, tmp_path):
    made = []
    played = type(sys)("vllm")
    played.LLM = lambda model, **how: made.append(how["enforce_eager"])
    monkeypatch.setitem(sys.modules, "vllm", played)
    for engine in (vllm, vllm_compiled):
        engine.load("m", "float32", 2, tmp_path)
    assert made == [True, False]
    monkeypatch.setattr(serve, "vllm_python", lambda cache: tmp_path / "bin" / "python")
    commands = {name: serve.COMMANDS[name]("m", "float32", tmp_path)[0] for name in ("vllm", "vllm_compiled")}
    assert "--enforce-eager" in commands["vllm"]
    assert [part for part in commands["vllm"] if part != "--enforce-eager"] == commands["vllm_compiled"]


def test_make_bench_says_how_long_it_took(monkeypatch, capsys):
    for part in ("parity", "startup", "throughput"):
        played = type(
            "Part", (), {name: lambda *asked: [] for name in ("rows", "thousand", "reference", "recompilation")}
        )
        monkeypatch.setattr(run, part, played)
    monkeypatch.setattr(run, "version", lambda package: "1")
    monkeypatch.setattr(run, "resolve", lambda name: name)
    run.main()
    assert capsys.readouterr().out.endswith("\nIt took 0.0 minutes.\n")


# The host's part


def test_the_stages_are_the_engines_own(tmp_path):
    asked = [f"{sentence} {number}" for number in range(20) for sentence in SENTENCES]
    with LLM(tiny_bert(tmp_path), max_num_batched_tokens=64) as llm:  # as many streams as there are devices
        spent, vectors = host.stages(llm, asked)
        assert llm.stats.batches == 0  # none went through the engine's own threads
        np.testing.assert_allclose(vectors, llm.embed_array(asked), atol=1e-6)
    assert set(spent) == set(host.STAGES)
    assert all(stage.wall > 0 for stage in spent.values())
    assert spent[host.DEVICE].cores > 0


def test_whose_the_bottleneck_is(tmp_path):
    seconds = dict.fromkeys(host.STAGES, 0.001) | {host.DEVICE: 0.1}
    of_device = {stage: host.Spent(wall, 2 * wall) for stage, wall in seconds.items()}
    assert host.bottleneck(of_device).startswith("no stage of the host is a bottleneck: the streams' threads")
    of_host = of_device | {"packing": host.Spent(0.06, 0.06), "planning": host.Spent(0.05, 0.05)}
    assert host.bottleneck(of_host) == (
        "the host is the bottleneck: the caller's threads are the slowest, and packing takes the most of their time"
    )
    table = list(host.lines(of_device, 500, 0.2))
    assert "| device | the streams' | 200.0 | 400.0 | 93.5% |" in table
    assert "- the streams' threads: 204.0 ms" in table
    assert "- all of it side by side (`embed_array`): 400.0 ms" in table


def test_the_hosts_command(tmp_path, capsys):
    host.main(["--model", str(tiny_bert(tmp_path)), "--texts", "30", "--rounds", "1"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("per 1,000 texts of 1")
    assert [row.split(" | ")[0].strip("| ") for row in printed[4 : 4 + len(host.STAGES)]] == list(host.STAGES)
    assert "bottleneck" in printed[-1]


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
