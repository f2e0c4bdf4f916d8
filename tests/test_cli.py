"""The command line: what it prints, writes and refuses, and that converted models are the same models."""

import json
import logging
import socket
import subprocess
import sys
from importlib.metadata import version

import jaxlib
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from jaxpool import LLM, load_params
from jaxpool.cli import main, make_parser
from jaxpool.convert import to_flax, to_hf
from jaxpool.converters.checkpoint import Checkpoint, open_checkpoint
from jaxpool.params import flatten
from jaxpool.server import command, listening, spelling
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
from jaxpool.cli import main, make_parser
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
            "weights_once": plan.weights_once,
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
    printed = capsys.readouterr().out
    assert "missing key 'backbone/embeddings/norm/bias'" in printed
    assert "If an older jaxpool converted it, convert it anew." in printed
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


# jaxpool serve: its command line


@pytest.fixture
def asked(monkeypatch):
    """`LLM`'s arguments of each model of a command line, and what was passed over."""

    def of(*words):
        calls, passed = [], []

        class Instead:
            def __init__(self, model, **arguments):
                calls.append({"model": model, **arguments})

        monkeypatch.setattr("jaxpool.LLM", Instead)
        monkeypatch.setattr("jaxpool.server.serving.Serving", lambda *_: None)
        monkeypatch.setattr("jaxpool.vllm_arguments.once", passed.append)
        command.load(make_parser().parse_args(spelling.as_argparse(["serve", *map(str, words)])))
        return [{k: v for k, v in call.items() if v is not False} for call in calls], passed

    return of


JSON = '{"a_b": 1}'
# Flag and value -> what `LLM` gets.
HONOURED = [
    (["--task", "embed"], {"task": "embed"}),
    (["--runner", "pooling"], {"runner": "pooling"}),
    (["--convert", "embed"], {"convert": "embed"}),
    (["--dtype", "float32"], {"dtype": "float32"}),
    (["--max-model-len", "64"], {"max_model_len": 64}),
    (["--max-model-len", "8k"], {"max_model_len": 8000}),
    (["--max-model-len", "8K"], {"max_model_len": 8192}),
    (["--max-model-len", "1.5k"], {"max_model_len": 1500}),
    (["--max-model-len", "auto"], {}),
    (["--max-model-len", "-1"], {}),
    (["--max-num-batched-tokens", "1m"], {"max_num_batched_tokens": 10**6}),
    (["--max-num-batched-tokens", "2M"], {"max_num_batched_tokens": 2 * 2**20}),
    (["--max-num-batched-tokens", "1G"], {"max_num_batched_tokens": 2**30}),
    (["--hf-overrides", JSON], {"hf_overrides": {"a_b": 1}}),
    (["--pooler-config", JSON], {"pooler_config": {"a_b": 1}}),
    (["--override-pooler-config", JSON], {"override_pooler_config": {"a_b": 1}}),
    (["--mm-processor-kwargs", JSON], {"mm_processor_kwargs": {"a_b": 1}}),
    (["--tensor-parallel-size", "2"], {"tensor_parallel_size": 2}),
    (["--data-parallel-size", "2"], {"data_parallel_size": 2}),
    (["--hf-token", "secret"], {"hf_token": "secret"}),
    (["--hf-token"], {}),
    (["--tokenizer", "None"], {}),
    (["--revision", "main"], {"revision": "main"}),
    (["--trust-remote-code"], {"trust_remote_code": True}),
]


@pytest.mark.parametrize(("words", "arguments"), HONOURED, ids=lambda words: " ".join(words))
def test_flags_that_reach_the_model_in_both_spellings(asked, words, arguments):
    flag, *value = words
    under = "--" + flag[2:].replace("-", "_")
    lines = [["m", flag, *value], ["m", under, *value], [flag, *value, "--model", "m"]]
    lines += [["m", f"{name}={value[0]}"] for name in (flag, under) if value]
    for line in lines:
        assert asked(*line) == ([{"model": "m", **arguments}], []), line


def test_short_flags(asked):
    assert asked("-tp", 2, "-dp", 3, "-q", "int8", "m") == (
        [{"model": "m", "tensor_parallel_size": 2, "data_parallel_size": 3, "quantization": "int8"}],
        [],
    )


def test_keys_of_objects_behind_dots(asked):
    line = ["m", "--pooler-config.pooling_type", "MEAN", "--hf_overrides.some_key.inner=0.5", "--enforce-eager"]
    line += ["--hf-overrides.architectures+", "A,B", "--pooler_config.use_activation=false"]
    (found,), _ = asked(*line)
    assert found["pooler_config"] == {"pooling_type": "MEAN", "use_activation": False}
    assert found["hf_overrides"] == {"some_key": {"inner": 0.5}, "architectures": ["A", "B"]}


def test_the_last_of_one_models_flags_counts(asked):
    (found,), _ = asked("m", "--dtype", "float32", "--dtype", "bfloat16")
    assert found["dtype"] == "bfloat16"


PASSED_OVER = """
--enable-prefix-caching --no-enable-prefix-caching --enable-chunked-prefill --no-enable-chunked-prefill
--download-dir=/tmp --kv-cache-dtype=fp8 --enforce-eager --gpu-memory-utilization=0.5 --max-num-seqs=16
--disable-log-requests --no-disable-log-requests --enable-log-requests --disable-flash-late-interaction --seed=0
--enable-chunked-prefill=False --swap-space=4 -pp=1 -asc=2 -O3 --compilation-config.mode=3 --api-server-count=2
--disable-log-stats --enable-request-id-headers --max-log-len=10 --enable-expert-parallel --block-size=16
""".split()


@pytest.mark.parametrize("word", PASSED_OVER)
def test_flags_that_change_nothing(asked, word):
    under = word[:2] + word[2:].replace("-", "_") if word.startswith("--") else word
    for spelt in {word, under}:
        (found,), passed = asked(spelt, "m")
        assert found == {"model": "m"}
        assert len(passed) == 1
        assert "change nothing here: --" in passed[0]


def test_one_warning_names_them_all(asked):
    _, (said,) = asked("m", "--enforce-eager", "--max_num_seqs", 4, "--use-v2-block-manager", "True")
    assert said.endswith("here: --enforce-eager, --max-num-seqs, --use-v2-block-manager")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--enable-lora"], "--enable-lora is True: it would change the answer"),
        (["--lora_modules", "a=b", "c=d"], "--lora-modules is ['a=b', 'c=d']: it would change"),
        (["--io-processor-plugin", "x"], "--io-processor-plugin is 'x'"),
        (["--tokenizer-revision", "x"], "--tokenizer-revision is 'x'"),
        (["--tokenizer-mode", "mistral"], "--tokenizer-mode is 'mistral', expected one of ('auto', 'hf')"),
        (["--load-format", "dummy"], "--load-format is 'dummy', expected"),
        (["--config", "flags.yaml"], "--config is 'flags.yaml': it would change"),
        (["--middleware", "no.such"], "--middleware no.such: No module named 'no'"),
        (["--middleware", "json.nothing"], "--middleware json.nothing: module 'json' has no attribute 'nothing'"),
        (["--middleware", "json.dumps"], "neither a class nor a coroutine function"),
        (["--model", "b", "--model", "c", "--task", "embed", "--task", "classify"], "--task is given 2 times for 3"),
        (["--model", "b/../m"], "two models are called 'm'"),
        (["--model", "b", *["--served-model-name", "a"] * 3], "--served-model-name is given 3 times for 2"),
        (["--chat-template", "none.jinja"], "--chat-template: chat_template is 'none.jinja': neither"),
        (["--chat-template", "{% for %}"], "--chat-template: chat_template: Expected an expression"),
        (["--ssl-keyfile", __file__], "TLS needs --ssl-certfile"),
        (["--ssl-certfile", __file__], "--ssl-certfile, --ssl-keyfile: no certificate with its key"),
        (["--uds", "/no/where"], "--uds /no/where: there is no directory /no"),
        (["--host", "203.0.113.1"], "--host 203.0.113.1 --port 0: Cannot assign"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_serve_errors(tmp_path, capsys, monkeypatch, words, message):
    for name in ("m", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("serve", "m", "--port", 0, *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("jaxpool: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "99999"], "'99999' is no port"),
        (["--hf-overrides", "none.json"], "none.json: No such file"),
        (["--hf-overrides", "{"], "no JSON"),
        (["--hf-overrides", "[1]"], "expected a JSON object, got '[1]'"),
        (["--allowed-origins", "*"], "no JSON"),
        (["--max-model-len", "1.5K"], "'1.5K' is no whole number such as"),
        (["--ssl-ca-certs", "none.pem"], "'none.pem' is no file that can be read"),
        (["--pooler-config.pooling_type"], "unrecognized arguments: --pooler-config.pooling_type"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    ],
    ids=str,
)
def test_serve_arguments_that_are_not_understood(capsys, words, message):
    with pytest.raises(SystemExit) as exit_:
        run("serve", "m", *words)
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") < 4  # without a page of flags in front


@pytest.mark.parametrize("command_", ["serve", "run-batch"])
def test_help_lists_what_has_an_effect(capsys, command_):
    with pytest.raises(SystemExit) as exit_:
        run(command_, "-h")
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "--hf-overrides" in out
    assert "--gpu-memory-utilization" not in out
    assert "vllm serve's other flags are taken too" in " ".join(out.split())


def test_serve_without_a_model(capsys):
    assert run("serve", "--port", 0) == 2
    assert "give a MODEL" in capsys.readouterr().err


def test_an_address_that_another_has(capsys, tmp_path):
    """Said before any model is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert run("serve", tmp_path / "none", "--port", port) == 2
    assert capsys.readouterr().err == f"jaxpool: error: --host 127.0.0.1 --port {port}: Address already in use\n"
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert run("serve", tmp_path / "none", "--uds", path) == 2
    assert "another process listens there" in capsys.readouterr().err
    assert path.exists()


def test_flags_of_several_models(asked):
    three = ["--model", "a", "--model", "b", "--model", "c"]
    found, _ = asked(
        *three, "--dtype", "float32", "--max-model-len", "auto", "--max-model-len", 7, "--max-model-len", 8
    )
    assert [call["model"] for call in found] == ["a", "b", "c"]
    assert [call["dtype"] for call in found] == ["float32"] * 3
    assert [call.get("max_model_len") for call in found] == [None, 7, 8]
    line = [
        "a",
        "--model",
        "b",
        "--task",
        "embed",
        "--task",
        "classify",
        "--hf-overrides",
        "{}",
        "--hf-overrides",
        JSON,
    ]
    found, _ = asked(*line, "--pooler-config.task", "embed")
    assert [call["task"] for call in found] == ["embed", "classify"]
    assert [call["hf_overrides"] for call in found] == [{}, {"a_b": 1}]
    assert [call["pooler_config"] for call in found] == [{"task": "embed"}] * 2


def test_settings_of_the_command_line(tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages[0].content }}")
    words = ["m", "--chat_template", str(template), "--default-chat-template-kwargs", '{"x": 1}', "--root-path", "api/"]
    words += ["--chat-template-content-format", "openai", "--allowed-local-media-path", ""]
    words += ["--limit-mm-per-prompt", "image=3,video=0"]
    args = make_parser().parse_args(spelling.as_argparse(["serve", *words]))
    template.unlink()
    with pytest.raises(ValueError, match="neither a jinja template nor a file"):
        command.settings(args)
    template.write_text("{{ messages[0].content }}")
    found = command.settings(args)
    template.unlink()  # it is not read again
    assert found.chat.template == "{{ messages[0].content }}"
    assert (found.chat.content_format, found.chat.values) == ("openai", {"x": 1})
    assert found.root_path == "/api"
    assert found.pictures.directory is None
    assert found.pictures.per_prompt == 3


def parsed(*words):
    return make_parser().parse_args(spelling.as_argparse(words))


def test_nothing_is_said_in_two_ways(monkeypatch):
    """`--api-key "$UNSET"` asks for no key, and leaves the variable's."""
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    for word in ("", "None"):
        found = parsed("serve", "m", "--api-key", word, "--host", word, "--uds", word, "--ssl-keyfile", word)
        assert command.settings(found).keys == ["secret"]
        assert (found.host, found.uds, found.ssl_keyfile) == ("127.0.0.1", None, None)
        listening.check_tls(found)
    assert command.settings(parsed("serve", "m", "--api-key", "", "own")).keys == ["own"]


def test_of_one_model_the_last_names_count():
    assert command.served_names(["m"], [["a"], ["b", "c"]]) == [("b", "c")]


def test_short_flags_with_their_value():
    found = parsed("run-batch", "m", "-iin.jsonl", "-o", "out.jsonl")
    assert (found.input_file.name, found.output_file.name) == ("in.jsonl", "out.jsonl")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ssl-cert-reqs", "2"], "TLS needs --ssl-certfile"),
        (["--ssl-ciphers", "x"], "TLS needs --ssl-certfile"),
        (["--ssl-certfile", "FILE", "--ssl-cert-reqs", "2"], "--ssl-cert-reqs: by --ssl-ca-certs"),
        (["--ssl-certfile", "FILE"], "--ssl-certfile, --ssl-keyfile: no certificate with its key"),
    ],
)
def test_tls_that_has_no_meaning(tmp_path, words, said):
    (tmp_path / "FILE").write_text("no certificate")
    words = [str(tmp_path / word) if word == "FILE" else word for word in words]
    with pytest.raises(ValueError, match=said):
        listening.check_tls(parsed("serve", "m", *words))


def test_what_uvicorn_is_told(tmp_path):
    def told(*words):
        return listening.settings(make_parser().parse_args([*words]))

    assert told("serve", "m")["log_level"] == "warning"
    assert told("serve", "m", "--log-level", "error")["log_level"] == "error"
    assert told("serve", "m", "--log-level", "error", "--uvicorn-log-level", "info")["log_level"] == "info"
    assert told("serve", "m", "--disable-uvicorn-access-log")["access_log"] is False
    certificates = tmp_path / "ca.pem"
    certificates.touch()
    found = told("serve", "m", "--ssl-ca-certs", str(certificates), "--ssl-cert-reqs", "2")
    assert (found["ssl_ca_certs"], found["ssl_cert_reqs"]) == (str(certificates), 2)
