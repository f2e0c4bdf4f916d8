"""Bad input: one clear error each, and the engine lives on."""

import json
import shutil

import numpy as np
import pytest

from jaxpool import LLM, PoolerConfig
from tests.tiny import tiny_bert


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(directory):
    with LLM(directory) as engine:
        yield engine


BAD_PROMPTS = [
    (None, "got None"),
    (3, "got int 3"),
    (2.5, "got float 2.5"),
    ([], "at least one prompt"),
    ([None], r"prompts\[0\].*None"),
    (["fine", 7.5], r"prompts\[1\].*float"),
    ([["nested", ["junk"]]], r"prompts\[0\].*list"),
    ([[]], r"prompts\[0\].*empty"),
    ([[1, 2], []], r"prompts\[1\].*empty"),
    ([[True, False]], "bool"),
    ([[1.5, 2]], "float"),
    (["fine", "\ud83d"], r"prompts\[1\]: not valid Unicode.*character 0"),
    ([[1, 10**9]], "out of vocabulary"),
    ([[-1, 2]], "out of vocabulary"),
    ([[2**40]], r"prompts\[0\]"),
    (np.array([2**32 + 5]), "prompts"),
    ({"prompt": None}, "got None"),
    ({"prompt_token_ids": []}, "at least one int"),
    ({"text": "x"}, "keys"),
    ({"prompt": "x", "prompt_token_ids": [1]}, "exactly one"),
    ({}, "exactly one"),
    (b"bytes", "bytes"),
    ({"prompt": "x", "multi_modal_data": {"video": 1}}, "multi_modal_data"),
]


@pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS, ids=str)
def test_bad_prompts(llm, prompt, message):
    with pytest.raises(ValueError, match=message):
        llm.embed(prompt, use_tqdm=False)
    assert llm.embed_array(["the fox"]).shape == (1, 32)


def test_the_last_row_of_the_vocabulary_is_the_last_that_is_taken(llm):
    size = llm.recipe.config.vocab_size
    assert llm.embed([size - 1], use_tqdm=False)
    with pytest.raises(ValueError, match=f"Token id {size} is out of vocabulary"):
        llm.embed([size], use_tqdm=False)


def test_too_long_is_vllms_error(llm):
    long = "fox " * 500
    with pytest.raises(ValueError, match=r"maximum context length is 64 tokens.*reduce the length"):
        llm.embed(long, use_tqdm=False)
    with pytest.raises(ValueError, match="maximum context length is 64 tokens"):
        llm.embed([5] * 65, use_tqdm=False)
    (cut,) = llm.embed(long, truncate_prompt_tokens=-1, use_tqdm=False)
    assert len(cut.prompt_token_ids) == 64
    (cut,) = llm.embed(long, truncate_prompt_tokens=10, use_tqdm=False)
    assert len(cut.prompt_token_ids) == 10
    with pytest.raises(ValueError, match="truncate_prompt_tokens value .* greater than max_model_len"):
        llm.embed(long, truncate_prompt_tokens=65, use_tqdm=False)
    with pytest.raises(ValueError, match="truncate_prompt_tokens"):
        llm.embed(long, truncate_prompt_tokens=0, use_tqdm=False)


def test_embed_array_cuts_and_counts(llm):
    before = llm.stats.truncated
    assert np.isfinite(llm.embed_array(["fox " * 500, "fox"])).all()
    assert llm.stats.truncated == before + 1


class _Spy:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, backend):
        self.backend, self.characters = backend, 0

    def encode_batch_fast(self, texts, **options):
        self.characters += sum(map(len, texts))
        return self.backend.encode_batch_fast(texts, **options)


def test_a_huge_text_is_right_and_hardly_tokenised(llm, monkeypatch):
    head = "the quick brown fox jumps over a lazy dog "
    huge = head * (5_000_000 // len(head))
    spy = _Spy(llm.engine.tokenizer._backend)
    monkeypatch.setattr(llm.engine.tokenizer, "_backend", spy)
    vector = llm.embed_array([huge])
    assert spy.characters < 20_000
    np.testing.assert_allclose(vector, llm.embed_array([head * 100]), atol=1e-6)


def test_an_empty_list_has_an_empty_answer(llm):
    assert llm.embed_array([]).shape == (0, 32)
    assert list(llm.embed_stream([])) == []


def test_a_stream_names_the_bad_text(llm):
    stream = llm.embed_stream(["the fox"] * 100 + [None])
    with pytest.raises(ValueError, match=r"texts\[100\].*None"):
        list(stream)
    assert llm.embed_array(["the fox"]).shape == (1, 32)


@pytest.mark.parametrize("texts", ["one text", b"bytes", {"prompt": "x"}])
def test_a_stream_of_letters_is_a_mistake(llm, texts):
    with pytest.raises(ValueError, match="expected an iterable of texts"):
        llm.embed_stream(texts)


@pytest.mark.parametrize("prompt", [5, "\ud83d"])
def test_a_prompt_that_is_no_text(llm, prompt):
    with pytest.raises(ValueError, match="prompt: "):
        llm.embed_array(["the fox"], prompt=prompt)


def test_truncating_to_no_number(llm):
    with pytest.raises(ValueError, match="truncate_prompt_tokens is '5'"):
        llm.embed("the fox", truncate_prompt_tokens="5", use_tqdm=False)


def test_prompts_by_name(llm):
    with pytest.raises(ValueError, match="prompt_name is 'nope'"):
        llm.embed_array(["the fox"], prompt_name="nope")


BAD_ARGUMENTS = [
    (dict(task="dance"), "Unsupported task: 'dance'"),
    (dict(dtype="float16"), "dtype is 'float16'"),
    (dict(tensor_parallel_size=99), "tensor_parallel_size is 99"),
    (dict(data_parallel_size=99), "data_parallel_size is 99"),
    (dict(max_model_len=10_000), "max_model_len is 10000"),
    (dict(max_model_len=0), "max_model_len is 0"),
    (dict(max_model_len=2), "max_model_len is 2, expected more than the tokenizer's 2 special tokens"),
    (dict(max_num_batched_tokens=0), "max_num_batched_tokens is 0"),
    (dict(pooler_config={"pooling_type": "BEST"}), "pooling_type is 'BEST'"),
    (dict(pooler_config={"poling": "CLS"}), "unknown fields"),
    (dict(pooler_config={}, override_pooler_config={}), "one setting"),
    (dict(hf_overrides={"hidden_act": "mish"}), "`hidden_act` is 'mish'"),
    (dict(hf_overrides={"is_decoder": True}), "`is_decoder` is True"),
    (dict(hf_overrides={"brand_new_thing": 3}), "`brand_new_thing` = 3 is not known"),
    (dict(hf_overrides={"architectures": ["NoSuchModel"]}), "NoSuchModel is not supported; supported are .*BertModel"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=str)
def test_bad_arguments(directory, arguments, message):
    with pytest.raises(ValueError, match=message):
        LLM(directory, **arguments)


def test_an_unknown_argument_is_a_type_error(directory):
    with pytest.raises(TypeError, match="no_such_argument"):
        LLM(directory, no_such_argument=1)


def test_contradictions_in_the_pooler_config():
    with pytest.raises(ValueError, match="contradict"):
        PoolerConfig(normalize=True, use_activation=False)


@pytest.fixture
def copy(directory, tmp_path):
    return shutil.copytree(directory, tmp_path / "copy")


def truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


BROKEN = {
    "no weights": (lambda d: (d / "model.safetensors").unlink(), FileNotFoundError, "holds no weights"),
    "half the weights": (lambda d: truncate(d / "model.safetensors", 5000), ValueError, "model.safetensors.*truncated"),
    "no bytes": (lambda d: truncate(d / "model.safetensors", 0), ValueError, "model.safetensors.*truncated"),
    "broken config": (lambda d: (d / "config.json").write_text('{"a": '), ValueError, "config.json is not valid JSON"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), ValueError, "config.json holds a list"),
    "no config": (lambda d: (d / "config.json").unlink(), FileNotFoundError, "no model directory"),
    "broken modules": (lambda d: (d / "modules.json").write_text("{"), ValueError, "modules.json is not valid JSON"),
    "broken pooling": (
        lambda d: (d / "1_Pooling" / "config.json").write_text("nope"),
        ValueError,
        "1_Pooling.config.json is not valid JSON",
    ),
    "broken tokenizer": (lambda d: (d / "tokenizer.json").write_text("{}"), ValueError, "tokenizer.json"),
    "binary config": (
        lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"),
        ValueError,
        "config.json is not valid",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_directories(copy, name):
    damage, kind, message = BROKEN[name]
    damage(copy)
    with pytest.raises(kind, match=message):
        LLM(copy)


def test_a_directory_that_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model directory"):
        LLM(tmp_path)


def test_other_sizes_than_the_weights(copy):
    config = json.loads((copy / "config.json").read_text())
    config |= {"num_hidden_layers": 3, "intermediate_size": 50}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="22 problems") as error:
        LLM(copy)
    assert "missing key 'encoder.layer.2.output.dense.bias'" in str(error.value)
    assert "'encoder.layer.0.intermediate.dense.weight' has shape [48, 32], expected [50, 32]" in str(error.value)


def test_a_tokenizer_of_another_model(directory, copy):
    config = json.loads((copy / "config.json").read_text())
    config["vocab_size"] -= 10
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the tokenizer has .* tokens, the model"):
        LLM(copy)
