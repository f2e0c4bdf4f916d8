"""What a model directory says about itself: read rightly, or refused by file and key."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxpool import LLM, read_recipe
from jaxpool.heads import Dense, Normalize
from jaxpool.pooler_config import PoolerConfig
from tests.tiny import tiny_bert

TEXTS = ["the quick brown fox", "many hands make light work, and hello"]


def edit(file: Path, **values: object) -> None:
    """Sets keys of a JSON file; `...` takes one out."""
    merged = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in merged.items() if value is not ...}))


def set_modules(directory: Path, *kinds: str) -> None:
    """Names the modules behind the Transformer and the Pooling, each in the folder 2_<kind>."""
    file = directory / "modules.json"
    entries = [{"path": f"2_{kind}", "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    file.write_text(json.dumps(json.loads(file.read_text())[:2] + entries))


def embed(directory: Path, **settings: object) -> np.ndarray:
    with LLM(str(directory), dtype="float32", **settings) as llm:
        return llm.embed_array(TEXTS)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# Normalize


@pytest.mark.parametrize("normalize", [None, False, True])
@pytest.mark.parametrize("last", [False, True])
def test_normalize_switches_only_the_last_module(tmp_path: Path, normalize: bool | None, last: bool) -> None:
    directory = tiny_bert(tmp_path, dense=True)
    set_modules(directory)
    pooled = embed(directory, pooler_config={"normalize": False})
    set_modules(directory, "Normalize", "Dense", *["Normalize"] * last)
    weights = load_file(directory / "2_Dense" / "model.safetensors")
    expected = np.tanh(unit(pooled) @ weights["linear.weight"].T + weights["linear.bias"])
    if last if normalize is None else normalize:
        expected = unit(expected)
    vectors = embed(directory, pooler_config={"normalize": normalize})
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


def test_module_folders_stay_with_their_modules(tmp_path: Path) -> None:
    directory = tiny_bert(tmp_path, dense=True)
    set_modules(directory, "Normalize", "Dense", "Normalize")
    recipe = read_recipe(directory)
    kept = PoolerConfig(normalize=False).apply(recipe)
    assert kept.modules == (Normalize(), Dense(32, 16))
    assert kept.module_folders["head/1"] == recipe.module_folders["head/1"] == "2_Dense"
    assert PoolerConfig(normalize=True).apply(kept).modules == recipe.modules


# Widths


def test_modules_of_another_width_are_refused(tmp_path: Path) -> None:
    directory = tiny_bert(tmp_path, dense=True)
    edit(directory / "2_Dense" / "config.json", in_features=31)
    with pytest.raises(ValueError, match=r"2_Dense.config.json: Dense takes vectors of 31, but gets vectors of 32"):
        read_recipe(directory)
    set_modules(directory, "LayerNorm")
    (directory / "2_LayerNorm").mkdir()
    (directory / "2_LayerNorm" / "config.json").write_text('{"dimension": 8}')
    with pytest.raises(ValueError, match=r"2_LayerNorm.config.json: LayerNorm takes vectors of 8, .* of 32"):
        read_recipe(directory)


def test_a_pooling_type_that_does_not_fit_the_modules_is_refused(tmp_path: Path) -> None:
    directory = tiny_bert(tmp_path, dense=True)
    edit(directory / "1_Pooling" / "config.json", pooling_mode_cls_token=True)
    with pytest.raises(ValueError, match="Dense takes vectors of 32, but gets vectors of 64"):
        read_recipe(directory)
    edit(directory / "2_Dense" / "config.json", in_features=64)
    with pytest.raises(ValueError, match=r"pooler_config.*'CLS'.*: Dense takes vectors of 64, but gets vectors of 32"):
        PoolerConfig(pooling_type="CLS").apply(read_recipe(directory))


# Values of the wrong kind

ST, DENSE, POOLING = "config_sentence_transformers.json", "2_Dense/config.json", "1_Pooling/config.json"
LENGTH, TOKENIZER, CONFIG = "sentence_bert_config.json", "tokenizer_config.json", "config.json"


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        (DENSE, "in_features", ...),
        (DENSE, "in_features", None),
        (DENSE, "out_features", "16"),
        (DENSE, "bias", "yes"),
        (DENSE, "activation_function", ["tanh"]),
        (DENSE, "module_input_name", []),
        (POOLING, "pooling_mode", []),
        (POOLING, "pooling_mode", 3),
        (POOLING, "pooling_mode", [{}]),
        (POOLING, "pooling_mode_cls_token", "no"),
        (POOLING, "word_embedding_dimension", "32"),
        (ST, "prompts", ["query: "]),
        (ST, "prompts", {"query": 1}),
        (ST, "default_prompt_name", ["query"]),
        (ST, "similarity_fn_name", ["cosine"]),
        (ST, "truncate_dim", 0),
        (ST, "truncate_dim", -3),
        (ST, "truncate_dim", "x"),
        (ST, "truncate_dim", True),
        (LENGTH, "max_seq_length", -5),
        (LENGTH, "max_seq_length", "x"),
        (LENGTH, "modality_config", "text"),
        (LENGTH, "model_args", ["dtype"]),
        (TOKENIZER, "model_max_length", "x"),
        (CONFIG, "hidden_size", "32"),
        (CONFIG, "hidden_size", ...),
        (CONFIG, "num_attention_heads", 0),
        (CONFIG, "num_hidden_layers", 2.5),
        (CONFIG, "layer_norm_eps", "1e-12"),
        (CONFIG, "layer_norm_eps", float("nan")),
        (CONFIG, "max_position_embeddings", [64]),
        (CONFIG, "hidden_act", ["gelu"]),
        (CONFIG, "architectures", "BertModel"),
        (CONFIG, "architectures", [1]),
    ],
)
def test_values_of_the_wrong_kind_are_refused(tmp_path: Path, file: str, key: str, value: object) -> None:
    directory = tiny_bert(tmp_path, dense=True)
    edit(directory / file, **{key: value})
    with pytest.raises(ValueError) as caught:
        read_recipe(directory)
    assert file in str(caught.value)
    assert f"`{key}`" in str(caught.value)


@pytest.mark.parametrize("file", [ST, DENSE, POOLING, LENGTH, TOKENIZER, CONFIG, "modules.json"])
@pytest.mark.parametrize("text", ["[]", '"x"', "7", "null", "[" * 100_000, "9" * 5000])
def test_files_of_the_wrong_kind_are_refused(tmp_path: Path, file: str, text: str) -> None:
    directory = tiny_bert(tmp_path, dense=True)
    (directory / file).write_text(text)
    with pytest.raises(ValueError) as caught:
        read_recipe(directory)
    assert file in str(caught.value)


def test_nulls_are_as_good_as_missing(tmp_path: Path) -> None:
    directory = tiny_bert(tmp_path, dense=True)
    edit(directory / ST, prompts=None, truncate_dim=None, similarity_fn_name=None)
    edit(directory / LENGTH, max_seq_length=None)
    edit(directory / TOKENIZER, model_max_length=None)
    recipe = read_recipe(directory)
    assert (recipe.max_length, recipe.truncate_dim, recipe.similarity) == (64, None, "cosine")


# The first module


@pytest.mark.parametrize("kind", ["StaticEmbedding", "WordEmbeddings"])
def test_a_first_module_that_is_no_transformer_is_named(tmp_path: Path, kind: str) -> None:
    directory = tiny_bert(tmp_path)
    entry = {"path": f"0_{kind}", "type": f"sentence_transformers.models.{kind}"}
    (directory / "modules.json").write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match=rf"modules.json: the first module is .*{kind}"):
        read_recipe(directory)


# config.json


@pytest.mark.parametrize(
    "values",
    [
        {"emb_size": 32, "eos_token_ids": 0, "xla_device": True, "adapters": {"config_map": {}}, "name": "x"},
        {"max_seq_length": 64, "model_max_length": 64, "model_parallel": False, "is_composition": False},
        {"attn_implementation": "sdpa", "_attn_implementation_internal": "sdpa", "add_pooling_layer": False},
        {"summary_type": "first", "summary_use_proj": True, "summary_activation": "tanh", "summary_mode": 1},
        {"summary_first_dropout": 0.1, "summary_last_dropout": 0, "summary_proj_to_labels": True},
        {"chunk_size_feed_forward": 8},
        {"hidden_act": "gelu_python"},
    ],
)
def test_harmless_attributes_change_nothing(tmp_path: Path, values: dict[str, object]) -> None:
    directory = tiny_bert(tmp_path)
    expected = embed(directory)
    edit(directory / "config.json", **values)
    np.testing.assert_array_equal(embed(directory), expected)
