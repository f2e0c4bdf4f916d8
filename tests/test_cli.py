"""The command line: what it prints, writes and refuses, and that converted models are the same models."""

import json
import logging
import subprocess
import sys
from importlib.metadata import version

import jaxlib
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from jaxpool import LLM, load_params
from jaxpool.cli import main
from jaxpool.convert import to_flax, to_hf
from jaxpool.converters.checkpoint import Checkpoint, open_checkpoint
from jaxpool.params import flatten
from tests.tiny import tiny_bert

TEXTS = ["the fox", "a lazy dog, sing!", "", "seven small birds " * 9]


@pytest.fixture(autouse=True)
def log_level():
    """The command line sets the logger's level; other tests expect it as it was."""
    logger = logging.getLogger("jaxpool")
    level, handlers = logger.level, logger.handlers[:]
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    return tiny_bert(directory, dense=True, prompts={"query": "query: ", "none": ""})


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "in.txt"
    file.write_text("".join(text + "\n" for text in TEXTS), encoding="utf-8")
    return file


def run(*arguments):
    return main([str(argument) for argument in arguments])


def names(directory):
    return sorted(path.name for path in directory.iterdir())


# jaxpool


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        run("--version")
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"jaxpool {version('jaxpool')}\n"


def test_help_does_not_wait_for_jax():
    code = """
import sys
from jaxpool.cli import main
try:
    main(["embed", "-h"])
except SystemExit as e:
    assert e.code == 0
heavy = {"jax", "numpy", "tokenizers", "flax", "torch", "transformers", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("MODEL", "INPUT", "--output", "--column", "--prompt-name", "--deterministic", "--compile-cache"):
        assert word in done.stdout


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "jaxpool", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"jaxpool {version('jaxpool')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["embed", "model"], "INPUT, -o/--output"),
        (["embed", "model", "in.txt", "-o", "out.npy", "--prompt", "a", "--prompt-name", "b"], "not allowed with"),
        (["embed", "model", "in.txt", "-o", "out.npy", "--max-model-len", "long"], "invalid int value: 'long'"),
        (["convert", "model"], "-o/--output"),
        (["info"], "MODEL"),
        (["--log-level", "loud", "info", "model"], "invalid choice: 'loud'"),
    ],
)
def test_arguments_that_are_not_understood(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_log_level_before_and_behind_the_command(model, capsys):
    logger = logging.getLogger("jaxpool")
    for arguments, level in (
        (["info", model], logging.WARNING),
        (["--log-level", "info", "info", model], logging.INFO),
        (["info", model, "--log-level", "error"], logging.ERROR),
    ):
        assert run(*arguments) == 0
        assert logger.level == level


def test_bugs_keep_their_traceback(model, monkeypatch):
    def broken(*_):
        raise KeyError("a bug")

    monkeypatch.setattr("jaxpool.inspection.inspect", broken)
    with pytest.raises(KeyError):
        run("info", model)


# jaxpool embed


def test_embed(model, texts, tmp_path, capsys):
    output = tmp_path / "out.npy"
    assert run("embed", model, texts, "-o", output) == 0
    out, err = capsys.readouterr()
    assert err == ""
    line = out.splitlines()
    assert len(line) == 1
    for part in ("4 texts, ", " tokens, ", "0 truncated, ", "% padding, ", " s, ", f" texts/s -> {output}"):
        assert part in line[0]
    with LLM(model) as llm:
        np.testing.assert_allclose(np.load(output), llm.embed_array(TEXTS), rtol=0, atol=1e-6)


def test_embed_with_all_options(model, tmp_path, capsys):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    source.write_text("".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(TEXTS)))
    options = ["--column", "body", "--prompt-name", "query", "--max-model-len", 16, "--dtype", "bfloat16"]
    options += ["--max-num-batched-tokens", 64, "--deterministic", "--no-progress", "--log-level", "error"]
    assert run("embed", model, source, "--output", output, *options) == 0
    assert " 1 truncated, " in capsys.readouterr().out
    table = pq.read_table(output)
    assert table["id"].to_pylist() == [0, 1, 2, 3]
    assert table["body"].to_pylist() == TEXTS
    with LLM(model, max_model_len=16, dtype="bfloat16", max_num_batched_tokens=64, deterministic=True) as llm:
        expected = llm.embed_array(TEXTS, prompt_name="query")
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), expected)


def test_embed_keeps_compiled_programs_where_asked(model, texts, tmp_path):
    # In a process of its own: the setting is JAX's, for the whole process.
    command = [sys.executable, "-m", "jaxpool", "embed", model, texts, "-o", tmp_path / "out.npy"]
    subprocess.run([*command, f"--compile-cache={tmp_path / 'cache'}"], capture_output=True, check=True)
    assert list((tmp_path / "cache" / f"jaxlib-{jaxlib.__version__}").glob("*-cache"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.txt", "-o", "out.csv"], "output out.csv: the suffix is '.csv'"),
        (["in.csv", "-o", "out.npy"], "input in.csv: the suffix is '.csv'"),
        (["none.txt", "-o", "out.npy"], "input none.txt: there is no such file"),
        (["in.txt", "-o", "none/out.npy"], "output none/out.npy: there is no directory none"),
        (["in.txt", "-o", "out.npy", "--dtype", "int8"], "dtype is 'int8', expected one of"),
        (["in.txt", "-o", "out.npy", "--max-model-len", "65"], "max_model_len is 65, expected"),
        (["in.txt", "-o", "out.npy", "--prompt-name", "passage"], "prompt_name is 'passage', expected one of"),
        (["bad.jsonl", "-o", "out.npy"], "bad.jsonl:2: not valid JSON"),
        (["bad.txt", "-o", "out.npy"], "bad.txt:1: not valid UTF-8"),
    ],
)
def test_embed_errors(model, texts, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("x")
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{\n')
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\n")
    before = names(tmp_path)
    assert run("embed", model, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"jaxpool: error: {message}")
    assert "Traceback" not in err
    assert names(tmp_path) == before


def test_errors_say_where_they_came_from_if_asked(model, tmp_path, caplog):
    assert run("--log-level", "debug", "embed", model, tmp_path / "none.txt", "-o", tmp_path / "out.npy") == 2
    assert "Traceback" in caplog.text


def test_embed_without_pyarrow(model, texts, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run("embed", model, texts, "-o", tmp_path / "out.parquet") == 2
    assert "pip install 'jaxpool[data]'" in capsys.readouterr().err
    assert names(tmp_path) == ["in.txt"]


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_embed_interrupted(model, texts, tmp_path, capsys, monkeypatch, suffix):
    def interrupted(self, texts, **_):
        for _text in texts:
            yield np.zeros(self.recipe.embedding_size, np.float32)
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxpool.llm.LLM.embed_stream", interrupted)
    assert run("embed", model, texts, "-o", tmp_path / f"out{suffix}") == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert names(tmp_path) == ["in.txt"]


# jaxpool info


@pytest.fixture
def no_reading(monkeypatch):
    def refuse(*_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(Checkpoint, "read", refuse)


def test_info(model, capsys, no_reading):
    assert run("info", model) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"recipe of {model}" in lines
    for line in (
        "architecture: BertModel (bert)",
        "pooling: mean",
        "modules: Dense(32→16, tanh), Normalize",
        "embedding size: 16",
        "max length: 64 tokens",
        "prompts: query='query: '",
    ):
        assert line in lines
    assert any(line.startswith("parameters: ") for line in lines)
    assert any(line.startswith("total: ") for line in lines)
    assert lines[-1] == "weights: fit the model"


def test_info_says_what_an_llm_says(model, capsys):
    assert run("info", model, "--json", "--dtype", "bf16") == 0
    said = json.loads(capsys.readouterr().out)
    with LLM(model, dtype="bfloat16") as llm:
        plan = llm.memory_plan()
        assert said["memory"] == {
            "parameters": plan.parameters,
            "weights": plan.weights,
            "activations": plan.activations,
            "batch_tokens": plan.batch_tokens,
            "total": plan.total,
        }
        assert said["recipe"]["embedding_size"] == llm.recipe.embedding_size
    assert said["dtype"] == "bfloat16"
    assert said["directory"] == str(model)
    assert said["weights"] == {"fit": True, "problem": None}
    dense = {"type": "Dense", "inputs": 32, "outputs": 16, "bias": True, "activation": "tanh", "residual": False}
    assert said["recipe"]["modules"] == [dense]
    assert (said["recipe"]["final"], said["recipe"]["activate"]) == ("normalize", True)
    assert said["recipe"]["tasks"] == ["embed", "token_embed"]
    assert said["recipe"]["prompts"] == {"query": "query: ", "document": "", "none": ""}


def test_info_on_weights_that_do_not_fit(tmp_path, capsys, no_reading):
    directory = tiny_bert(tmp_path)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert run("info", directory) == 2
    out, err = capsys.readouterr()
    assert "weights: the checkpoint does not fit the model" in out
    assert "missing key 'encoder.layer.2." in out
    assert err == ""
    (directory / "model.safetensors").unlink()
    assert run("info", directory, "--json") == 2
    assert "holds no weights" in json.loads(capsys.readouterr().out)["weights"]["problem"]


def test_info_errors(tmp_path, model, capsys):
    for arguments, message in (
        ([tmp_path], "is no model directory"),
        ([tmp_path / "none"], "there is no directory"),
        ([model, "--dtype", "int8"], "dtype is 'int8'"),
    ):
        assert run("info", *arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("jaxpool: error: ")
        assert message in err


# jaxpool convert

VARIANTS = {
    "plain": {},
    "dense": {"dense": True},
    "without pooler": {"pooler": False, "normalize": False},
    "bfloat16": {"dtype": "bfloat16", "dense": True},
    "float16": {"dtype": "float16"},
    "prefix": {"prefix": "bert."},
    "in a folder": {"folder": "0_Transformer", "dense": True},
    "without modules.json": {"sentence_transformer": False},
}


def all_tensors(directory, prefix=""):
    """Every tensor in every .safetensors file, with its folder before its key, as (dtype, shape, bytes)."""
    return {
        f"{path.parent.relative_to(directory)}/{key.removeprefix(prefix)}": (str(x.dtype), x.shape, x.tobytes())
        for path in directory.rglob("*.safetensors")
        for key, x in load_file(path).items()
        if not key.endswith("position_ids")
    }


@pytest.mark.parametrize("shard", [2**30, 5000], ids=["whole", "sharded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_converting_there_and_back_keeps_every_bit(tmp_path, variant, shard):
    model = tiny_bert(tmp_path / "model", max_shard_bytes=shard, **VARIANTS[variant])
    to_flax(model, tmp_path / "flax", shard)
    to_hf(tmp_path / "flax", tmp_path / "back", shard)
    to_hf(model, tmp_path / "straight", shard)
    expected = all_tensors(model, VARIANTS[variant].get("prefix", ""))
    assert any("pooler" in key for key in expected) == VARIANTS[variant].get("pooler", True)
    assert all_tensors(tmp_path / "back") == expected
    assert all_tensors(tmp_path / "straight") == expected
    dtypes = {str(leaf.dtype) for leaf in flatten(load_params(tmp_path / "flax")).values()}
    assert dtypes == {VARIANTS[variant].get("dtype", "float32")}
    for copy in ("flax", "back"):
        files = {path.relative_to(model) for path in model.rglob("*.json") if "index" not in path.name}
        for file in files:
            assert (tmp_path / copy / file).read_bytes() == (model / file).read_bytes()
    index = list((tmp_path / "flax").glob("flax_params.safetensors.index.json"))
    assert len(index) == (shard == 5000)


@pytest.mark.parametrize("variant", ["dense", "bfloat16", "in a folder", "without modules.json"])
def test_a_converted_model_gives_the_same_vectors(tmp_path, variant):
    model = tiny_bert(tmp_path / "model", max_shard_bytes=9000, **VARIANTS[variant])
    to_flax(model, tmp_path / "flax", 9000)
    to_hf(tmp_path / "flax", tmp_path / "back")
    found = []
    for directory in (model, tmp_path / "flax", tmp_path / "back"):
        with LLM(directory, data_parallel_size=1, max_num_batched_tokens=64) as llm:
            found.append(llm.embed_array(TEXTS))
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_convert(model, tmp_path, capsys):
    assert run("convert", model, "-o", tmp_path / "flax") == 0
    assert capsys.readouterr().out == f"BertModel with Flax names -> {tmp_path / 'flax'}\n"
    assert run("convert", tmp_path / "flax", "--to-hf", "-o", tmp_path / "back") == 0
    assert capsys.readouterr().out == f"BertModel with PyTorch names -> {tmp_path / 'back'}\n"
    assert all_tensors(tmp_path / "back") == all_tensors(model)
    assert open_checkpoint(tmp_path / "flax").stem == "flax_params"
    assert run("info", tmp_path / "flax") == 0
    assert "weights: fit the model" in capsys.readouterr().out
    params = load_params(tmp_path / "flax")
    stored = load_file(model / "model.safetensors")
    for layer in range(2):
        query = stored[f"encoder.layer.{layer}.attention.self.query.weight"]
        kernel = params["backbone"]["layers"]["attention"]["query"]["kernel"][layer]
        np.testing.assert_array_equal(kernel, query.T.reshape(32, 4, 8))
    dense = load_file(model / "2_Dense" / "model.safetensors")
    np.testing.assert_array_equal(params["head"]["0"]["linear"]["kernel"], dense["linear.weight"].T)


def test_converted_files_can_be_read_by_those_who_may_read_others(model, tmp_path):
    (tmp_path / "other").touch()
    assert run("convert", model, "-o", tmp_path / "flax") == 0
    assert (tmp_path / "flax" / "flax_params.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_converted_model_that_misses_or_has_too_much(tmp_path, capsys):
    from safetensors.numpy import save_file

    run("convert", tiny_bert(tmp_path / "model"), "-o", tmp_path / "flax")
    file = tmp_path / "flax" / "flax_params.safetensors"
    whole = load_file(file)
    capsys.readouterr()
    save_file({key: x for key, x in whole.items() if key != "backbone/embeddings/norm/bias"}, file)
    assert run("info", tmp_path / "flax") == 2
    assert "missing key 'backbone/embeddings/norm/bias'" in capsys.readouterr().out
    save_file(whole | {"backbone/other": np.zeros(3)}, file)
    assert run("info", tmp_path / "flax") == 2
    assert "unexpected key 'backbone/other'" in capsys.readouterr().out


def test_convert_errors(model, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    broken = tiny_bert(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    before = names(tmp_path)
    for source, output, message in (
        (model, tmp_path / "full", "there already, and not an empty directory"),
        (model, model / "flax", "lies inside the model's directory"),
        (model, model, "lies inside the model's directory"),
        (broken, tmp_path / "out", "not a whole safetensors file"),
        (tmp_path / "full", tmp_path / "out", "is no model directory"),
    ):
        for options in ([], ["--to-hf"]):
            assert run("convert", source, "-o", output, *options) == 2
            err = capsys.readouterr().err
            assert err.startswith("jaxpool: error: ")
            assert message in err
            assert names(tmp_path) == before
    assert (tmp_path / "full" / "file").read_text() == "kept"


def test_convert_interrupted(model, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxpool.convert.copy_metadata", interrupted)
    assert run("convert", model, "-o", tmp_path / "out") == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert names(tmp_path) == []
