"""Whole model directories against sentence-transformers itself, in the formats of 6.x and of ≤ 5.3."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from torch import nn

from jaxpool import LLM, read_recipe
from jaxpool.reading import Reader
from tests.parity.checkpoints import (
    HIDDEN,
    POOLING_FLAGS,
    TEXTS,
    assert_close,
    edit_json,
    make_model,
    read_json,
    to_old_format,
    write_backbone,
    write_json,
    write_sentence_transformer,
)

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("compiled_programs")]

LENGTH = 16
FORMATS = ["new", "old"]


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plain transformers directories; their tokenizers stop at 16 tokens."""
    root = tmp_path_factory.mktemp("backbones")
    return {kind: write_backbone(root / kind, kind, model_max_length=LENGTH) for kind in ("bert", "mpnet")}


def open_llm(directory: Path, **settings: Any) -> LLM:
    """jaxpool's side. Batches of one row, so that 16 tokens are one shape to compile."""
    return LLM(directory, **{"dtype": "float32", "data_parallel_size": 1, "max_num_batched_tokens": LENGTH} | settings)


def open_reference(directory: Path) -> SentenceTransformer:
    return SentenceTransformer(str(directory), device="cpu")


def assert_same_vectors(directory: Path, texts: Sequence[str] = TEXTS, **encode: Any) -> np.ndarray:
    """Both libraries' vectors of a directory, compared; returns them."""
    expected = open_reference(directory).encode(list(texts), **encode)
    with open_llm(directory) as llm:
        vectors = llm.embed_array(list(texts), **encode)
    assert np.abs(expected).max() > 0.05
    assert_close(vectors, expected)
    return vectors


def in_format(name: str, directory: Path, **old: Any) -> Path:
    return to_old_format(directory, directory.with_name("old"), **old) if name == "old" else directory


# Pooling


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize(
    "mode",
    [*POOLING_FLAGS, ("cls", "mean"), ("max", "lasttoken"), tuple(POOLING_FLAGS)],
    ids=lambda mode: mode if isinstance(mode, str) else "+".join(mode),
)
def test_pooling(mode: str | tuple[str, ...], version: str, backbones: dict[str, Path], tmp_path: Path) -> None:
    new = write_sentence_transformer(tmp_path / "new", backbones["bert"], [Pooling(HIDDEN, mode)])
    directory = in_format(version, new)
    assert (version == "old") == ("pooling_mode_cls_token" in read_json(directory / "1_Pooling" / "config.json"))
    vectors = assert_same_vectors(directory)
    assert vectors.shape == (len(TEXTS), HIDDEN * (1 if isinstance(mode, str) else len(mode)))
    assert np.array_equal(vectors[2], vectors[4])


def test_pooling_in_an_order_of_its_own(backbones: dict[str, Path], tmp_path: Path) -> None:
    assert_same_vectors(
        write_sentence_transformer(tmp_path / "new", backbones["bert"], [Pooling(HIDDEN, ("lasttoken", "mean", "cls"))])
    )


@pytest.mark.parametrize(
    ("flags", "pooling"),
    [
        ({}, ("mean",)),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
        ({"pooling_mode_cls_token": True}, ("cls",)),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, ("cls", "max")),
        ({"pooling_mode_cls_token": True, "pooling_mode": "max"}, ("max",)),
    ],
)
def test_pooling_flags_left_out(
    flags: dict[str, Any], pooling: tuple[str, ...], backbones: dict[str, Path], tmp_path: Path
) -> None:
    """The first releases wrote four flags, some models none."""
    new = write_sentence_transformer(tmp_path / "new", backbones["bert"], [Pooling(HIDDEN)])
    directory = in_format("old", new)
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": HIDDEN, **flags})
    assert read_recipe(directory).pooling == pooling
    assert_same_vectors(directory)


# The modules behind the pooling

HEADS: dict[str, list[nn.Module]] = {
    "normalize": [Normalize()],
    "dense-tanh": [Dense(HIDDEN, 20)],
    "normalize-dense-identity-no-bias": [
        Normalize(), Dense(HIDDEN, 50, bias=False, activation_function=nn.Identity())
    ],
    "dense-residual": [Dense(HIDDEN, HIDDEN, use_residual=True)],
    "dense-residual-other-width": [Dense(HIDDEN, 20, activation_function=nn.GELU(), use_residual=True)],
    "layer-norm": [LayerNorm(HIDDEN)],
    "dense-layer-norm-dense-normalize": [
        Dense(HIDDEN, 44), LayerNorm(44), Dense(44, 12, bias=False, use_residual=True), Normalize()
    ],
    "every-activation": [
        Dense(HIDDEN, 30, activation_function=activation) if i == 0 else
        Dense(30, 30, activation_function=activation, use_residual=True)
        for i, activation in enumerate([nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.SiLU(), nn.Tanh(), nn.Identity()])
    ],
}  # fmt: skip


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("name", HEADS)
def test_modules_behind_the_pooling(name: str, version: str, backbones: dict[str, Path], tmp_path: Path) -> None:
    new = write_sentence_transformer(tmp_path / "new", backbones["bert"], [Pooling(HIDDEN), *HEADS[name]])
    directory = in_format(version, new)
    if version == "old":
        assert not list(directory.glob("*_Normalize"))
        assert not list(directory.glob("*_*/model.safetensors"))
    assert_same_vectors(directory)


def test_two_poolings_and_a_dense_over_both(backbones: dict[str, Path], tmp_path: Path) -> None:
    modules = [Pooling(HIDDEN, ("cls", "max")), Dense(2 * HIDDEN, 8), Normalize()]
    assert_same_vectors(write_sentence_transformer(tmp_path / "new", backbones["bert"], modules))


def test_modules_on_tokens(backbones: dict[str, Path], tmp_path: Path) -> None:
    on_tokens = {"module_input_name": "token_embeddings"}
    modules = [
        Dense(HIDDEN, 20, **on_tokens),
        Normalize(**on_tokens),
        Pooling(20, ("mean", "max")),
        Dense(40, 10),
        Normalize(),
    ]
    assert_same_vectors(write_sentence_transformer(tmp_path / "new", backbones["bert"], modules))


def test_modules_in_the_order_of_the_list(backbones: dict[str, Path], tmp_path: Path) -> None:
    modules = [Pooling(HIDDEN), Dense(HIDDEN, HIDDEN), LayerNorm(HIDDEN)]
    directory = write_sentence_transformer(tmp_path / "new", backbones["bert"], modules)
    entries = read_json(directory / "modules.json")
    for entry, idx in zip(entries, (0, 1, 3, 2), strict=True):
        entry["idx"] = idx
    write_json(directory / "modules.json", entries)
    assert_same_vectors(directory)


def test_dropout_does_nothing(backbones: dict[str, Path], tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Dropout

    modules = [Pooling(HIDDEN), Dropout(0.5), Dense(HIDDEN, 12)]
    assert_same_vectors(write_sentence_transformer(tmp_path / "new", backbones["bert"], modules))


# MPNet, and the tokenizer's and the transformer's folder


@pytest.mark.parametrize("version", FORMATS)
def test_mpnet(version: str, backbones: dict[str, Path], tmp_path: Path) -> None:
    new = write_sentence_transformer(tmp_path / "new", backbones["mpnet"], [Pooling(HIDDEN), Normalize()])
    assert_same_vectors(in_format(version, new))


def test_mpnet_with_every_pooling(backbones: dict[str, Path], tmp_path: Path) -> None:
    modules = [Pooling(HIDDEN, tuple(POOLING_FLAGS))]
    assert_same_vectors(write_sentence_transformer(tmp_path / "new", backbones["mpnet"], modules))


@pytest.mark.parametrize("version", FORMATS)
def test_transformer_in_a_folder_of_its_own(version: str, backbones: dict[str, Path], tmp_path: Path) -> None:
    new = write_sentence_transformer(tmp_path / "new", backbones["bert"], [Pooling(HIDDEN)])
    directory = in_format(version, new)
    (directory / "0_Transformer").mkdir()
    for file in [path for path in directory.iterdir() if path.is_file()]:
        if file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(directory / "0_Transformer" / file.name)
    entries = read_json(directory / "modules.json")
    entries[0]["path"] = "0_Transformer"
    write_json(directory / "modules.json", entries)
    assert_same_vectors(directory)


def test_the_default_engine_with_more_rows_and_streams(backbones: dict[str, Path], tmp_path: Path) -> None:
    modules = [Pooling(HIDDEN), Normalize()]
    directory = write_sentence_transformer(tmp_path / "new", backbones["mpnet"], modules)
    edit_json(directory / "tokenizer_config.json", model_max_length=32)
    texts = [" ".join(text.split()[i:]) for text in TEXTS for i in range(4)]
    expected = open_reference(directory).encode(texts)
    with LLM(directory) as llm:
        assert_close(llm.embed_array(texts), expected)
        assert_close(np.stack(list(llm.embed_stream(texts))), expected)


# Prompts


PROMPTS = {
    "query": "query: ",
    "document": "Passage: the ",
    "long": "represent this sentence for searching relevant passages ",
}


@pytest.fixture(scope="module", params=FORMATS)
def prompted(
    request: pytest.FixtureRequest, backbones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LLM, SentenceTransformer]]:
    """Every pooling mode with the prompt left out of it."""
    modules = [Pooling(HIDDEN, tuple(POOLING_FLAGS), include_prompt=False)]
    new = write_sentence_transformer(
        tmp_path_factory.mktemp("prompted") / "new",
        backbones["bert"],
        modules,
        prompts=PROMPTS,
        default_prompt_name="document",
    )
    directory = in_format(request.param, new)
    with open_llm(directory) as llm:
        yield llm, open_reference(directory)


def test_prompts_left_out_of_the_pooling(prompted: tuple[LLM, SentenceTransformer]) -> None:
    llm, reference = prompted
    texts = list(TEXTS)
    for how in (
        {},
        {"prompt_name": "query"},
        {"prompt_name": "long"},
        {"prompt": "the dog "},
        {"prompt": ""},
        {"prompt": "東京☃ "},
        {"prompt": "quick"},  # one word with what follows
        {"prompt": "over and over again " * 9},  # longer than the limit: only the closing token is pooled
    ):
        assert_close(llm.embed_array(texts, **how), reference.encode(texts, **how))
    assert_close(llm.encode_query(texts), reference.encode_query(texts))
    assert_close(llm.encode_document(texts), reference.encode_document(texts))
    assert_close(np.stack(list(llm.embed_stream(texts, prompt_name="query"))), reference.encode_query(texts))
    outputs = llm.embed(texts, truncate_prompt_tokens=-1, use_tqdm=False)
    assert_close(np.stack([output.outputs.embedding for output in outputs]), reference.encode(texts))


def test_the_prompt_is_left_out_indeed(prompted: tuple[LLM, SentenceTransformer]) -> None:
    llm, _ = prompted
    recipe = replace(llm.recipe, include_prompt=True)
    assert not llm.recipe.include_prompt
    without = llm.embed_array("the fox", prompt="the dog ")
    engine = llm.engine
    engine._reader, kept = Reader(recipe, engine.tokenizer), engine._reader
    try:
        assert np.abs(llm.embed_array("the fox", prompt="the dog ") - without).max() > 0.01
    finally:
        engine._reader = kept


def test_prompts_pooled_too(backbones: dict[str, Path], tmp_path: Path) -> None:
    modules = [Pooling(HIDDEN, ("mean", "weightedmean")), Normalize()]
    directory = write_sentence_transformer(tmp_path / "new", backbones["bert"], modules, prompts=PROMPTS)
    reference = open_reference(directory)
    with open_llm(directory) as llm:
        for how in ({}, {"prompt_name": "query"}, {"prompt": "the dog "}):
            assert_close(llm.embed_array(TEXTS, **how), reference.encode(list(TEXTS), **how))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prompts": {}},
        {"prompts": {"query": None, "passage": "passage: "}},
        {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "passage"},
        {"prompts": {}, "default_prompt_name": "query"},
    ],
)
def test_prompts_that_are_missing_or_null(settings: dict[str, Any], backbones: dict[str, Path], tmp_path: Path) -> None:
    """A model has a "query" and a "document" prompt always, empty ones if need be."""
    directory = write_sentence_transformer(tmp_path / "new", backbones["bert"], [Pooling(HIDDEN)])
    edit_json(
        directory / "config_sentence_transformers.json", **{"prompts": ..., "default_prompt_name": ...} | settings
    )
    reference = open_reference(directory)
    texts = list(TEXTS[:4])
    with open_llm(directory) as llm:
        assert_close(llm.embed_array(texts), reference.encode(texts))
        assert_close(llm.encode_query(texts), reference.encode_query(texts))
        assert_close(llm.encode_document(texts), reference.encode_document(texts))
        for name in reference.prompts:
            assert_close(llm.embed_array(texts, prompt_name=name), reference.encode(texts, prompt_name=name))
        with pytest.raises(ValueError, match="nobody"):
            reference.encode(texts, prompt_name="nobody")
        with pytest.raises(ValueError, match="nobody"):
            llm.embed_array(texts, prompt_name="nobody")


def test_no_model_config_at_all(backbones: dict[str, Path], tmp_path: Path) -> None:
    directory = write_sentence_transformer(tmp_path / "new", backbones["bert"], [Pooling(HIDDEN)])
    (directory / "config_sentence_transformers.json").unlink()
    assert_same_vectors(directory, TEXTS[:4], prompt_name="query")


# Truncated vectors and similarities


def test_truncate_dim(backbones: dict[str, Path], tmp_path: Path) -> None:
    modules = [Pooling(HIDDEN), Dense(HIDDEN, 20), Normalize()]
    directory = write_sentence_transformer(tmp_path / "new", backbones["bert"], modules, truncate_dim=7)
    assert read_json(directory / "config_sentence_transformers.json")["truncate_dim"] == 7
    assert assert_same_vectors(directory).shape == (len(TEXTS), 7)
    edit_json(directory / "config_sentence_transformers.json", truncate_dim=21)
    assert assert_same_vectors(directory).shape == (len(TEXTS), 20)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan", None])
def test_similarity(name: str | None, backbones: dict[str, Path], tmp_path: Path) -> None:
    settings = {} if name is None else {"similarity_fn_name": name}
    modules = [Pooling(HIDDEN), Normalize()]
    directory = write_sentence_transformer(tmp_path / "new", backbones["bert"], modules, **settings)
    if name is None:
        edit_json(directory / "config_sentence_transformers.json", similarity_fn_name=...)
    reference = open_reference(directory)
    a = reference.encode(list(TEXTS[:9]))
    b = np.concatenate([reference.encode(list(TEXTS[5:])), np.zeros((1, HIDDEN), np.float32), -a[:2], a[:2] + 1e-4])
    with open_llm(directory) as llm:
        assert_close(llm.similarity(a, b), reference.similarity(a, b))
        assert_close(llm.similarity(a, a), reference.similarity(a, a))
        assert_close(llm.similarity(a[0], b), reference.similarity(a[0], b))


# The longest text


@pytest.mark.parametrize(
    ("max_seq_length", "model_max_length", "expected"),
    [
        pytest.param(None, 20, 20, id="null: the tokenizer's"),
        pytest.param(None, 512, 48, id="null: the positions, if the tokenizer allows more"),
        pytest.param(None, 10**30, 48, id="null: the positions, if the tokenizer has no limit"),
        pytest.param(None, ..., 48, id="null: the positions, if the tokenizer names none"),
        pytest.param(9, 20, 9, id="small"),
        pytest.param(30, 20, 30, id="more than the tokenizer's: wins"),
        pytest.param(30, ..., 30, id="alone"),
        pytest.param(..., 13, 13, id="not named: the tokenizer's"),
        pytest.param(..., 512, 48, id="not named: the positions"),
        pytest.param("new", 13, 13, id="new format: the tokenizer's"),
        pytest.param("new", 512, 48, id="new format: the positions"),
        pytest.param("no file", 13, 13, id="no file: the tokenizer's"),
    ],
)
def test_longest_text(
    max_seq_length: Any, model_max_length: Any, expected: int, backbones: dict[str, Path], tmp_path: Path
) -> None:
    directory = write_sentence_transformer(tmp_path / "new", backbones["bert"], [Pooling(HIDDEN)])
    if max_seq_length != "new":
        directory = in_format("old", directory)
        edit_json(directory / "sentence_bert_config.json", max_seq_length=max_seq_length)
    if max_seq_length == "no file":
        (directory / "sentence_bert_config.json").unlink()
    edit_json(directory / "tokenizer_config.json", model_max_length=model_max_length)
    assert open_reference(directory).max_seq_length == expected
    assert read_recipe(directory).max_length == expected
    assert_same_vectors(directory)


@pytest.mark.parametrize(("kind", "positions"), [("bert", 48), ("mpnet", 46)])
@pytest.mark.parametrize("asked", [None, 100])
def test_texts_are_cut_where_the_positions_end(
    asked: int | None, kind: str, positions: int, backbones: dict[str, Path], tmp_path: Path
) -> None:
    """Where sentence-transformers would read behind the table of positions (and fail, if a text is as long)."""
    new = write_sentence_transformer(tmp_path / "new", backbones[kind], [Pooling(HIDDEN)])
    directory = in_format("old", new, max_seq_length=asked)
    reference = open_reference(directory)
    assert reference.max_seq_length == (asked or 48)
    if reference.max_seq_length > positions:
        with pytest.raises((IndexError, RuntimeError)):
            reference.encode(TEXTS[-1])
    reference.max_seq_length = positions
    with open_llm(directory) as llm:
        assert llm.recipe.max_length == positions
        assert_close(llm.embed_array(TEXTS), reference.encode(list(TEXTS)))


@pytest.mark.parametrize("name", ["sentence_roberta_config.json", "sentence_xlm-roberta_config.json"])
def test_length_in_a_file_named_after_another_model(name: str, backbones: dict[str, Path], tmp_path: Path) -> None:
    new = write_sentence_transformer(tmp_path / "new", backbones["bert"], [Pooling(HIDDEN)])
    directory = in_format("old", new, max_seq_length=9)
    (directory / "sentence_bert_config.json").rename(directory / name)
    assert open_reference(directory).max_seq_length == read_recipe(directory).max_length == 9


# Lower case


@pytest.mark.parametrize("in_config", [True, False])
@pytest.mark.parametrize("do_lower_case", [True, False])
def test_do_lower_case(do_lower_case: bool, in_config: bool, tmp_path: Path) -> None:
    backbone = write_backbone(tmp_path / "cased", "bert", lowercase=in_config, model_max_length=LENGTH)
    new = write_sentence_transformer(tmp_path / "new", backbone, [Pooling(HIDDEN)])
    vectors = assert_same_vectors(in_format("old", new, do_lower_case=do_lower_case))
    with open_llm(tmp_path / "old", deterministic=True) as llm:  # else their places in a row may tell them apart
        upper, lower = llm.embed_array(["The QUICK Fox", "the quick fox"])
    assert np.array_equal(upper, lower) == (do_lower_case or in_config)
    assert len(vectors) == len(TEXTS)


# Token embeddings


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_token_embeddings(kind: str, backbones: dict[str, Path], tmp_path: Path) -> None:
    directory = write_sentence_transformer(tmp_path / "new", backbones[kind], [Pooling(HIDDEN), Normalize()])
    expected = open_reference(directory).encode(list(TEXTS), output_value="token_embeddings")
    with open_llm(directory, pooler_config={"pooling_type": "ALL", "normalize": False}) as llm:
        outputs = llm.encode(list(TEXTS), truncate_prompt_tokens=-1, use_tqdm=False)
    for output, tokens in zip(outputs, expected, strict=True):
        assert_close(output.outputs.data, tokens)
        assert len(output.prompt_token_ids) == len(tokens)


def test_token_embeddings_behind_modules_on_tokens(backbones: dict[str, Path], tmp_path: Path) -> None:
    on_tokens = {"module_input_name": "token_embeddings"}
    modules = [Dense(HIDDEN, 8, **on_tokens), Normalize(**on_tokens), Pooling(8)]
    directory = write_sentence_transformer(tmp_path / "new", backbones["bert"], modules)
    expected = open_reference(directory).encode(list(TEXTS), output_value="token_embeddings")
    with open_llm(directory, pooler_config={"pooling_type": "ALL"}) as llm:
        outputs = llm.encode(list(TEXTS), truncate_prompt_tokens=-1, use_tqdm=False)
    for output, tokens in zip(outputs, expected, strict=True):
        assert_close(output.outputs.data, tokens)


# Weights in half precision: sentence-transformers computes in the stored dtype, so it is told to do so in float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_stored_in_half_precision(dtype: torch.dtype, backbones: dict[str, Path], tmp_path: Path) -> None:
    half = shutil.copytree(backbones["bert"], tmp_path / "half")
    vocab_size = read_json(half / "config.json")["vocab_size"]
    make_model("bert", vocab_size=vocab_size).to(dtype).save_pretrained(half)
    directory = write_sentence_transformer(tmp_path / "new", half, [Pooling(HIDDEN), Dense(HIDDEN, 12)])
    assert SentenceTransformer(str(directory), device="cpu").dtype == dtype
    reference = SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": torch.float32})
    with open_llm(directory) as llm:
        assert_close(llm.embed_array(TEXTS), reference.encode(list(TEXTS)))


# What is not understood


@pytest.fixture
def saved(backbones: dict[str, Path], tmp_path: Path) -> Path:
    return write_sentence_transformer(tmp_path / "new", backbones["bert"], [Pooling(HIDDEN), Dense(HIDDEN, 8)])


def set_type(directory: Path, place: int, kind: str) -> None:
    entries = read_json(directory / "modules.json")
    entries[place]["type"] = kind
    write_json(directory / "modules.json", entries)


def assert_refused(directory: Path, *mentioned: str) -> None:
    for load in (read_recipe, LLM):
        with pytest.raises(ValueError) as caught:
            load(directory)
        for part in mentioned:
            assert part in str(caught.value)


@pytest.mark.parametrize(
    "kind",
    [
        "sentence_transformers.models.WeightedLayerPooling",
        "sentence_transformers.sentence_transformer.modules.weighted_layer_pooling.WeightedLayerPooling",
        "sentence_transformers.models.CNN",
        "sentence_transformers.models.LSTM",
        "sentence_transformers.models.WordWeights",
        "sentence_transformers.models.NoSuchModule",
    ],
)
@pytest.mark.parametrize("place", [1, 2])
def test_unknown_module_types_are_refused(kind: str, place: int, saved: Path) -> None:
    set_type(saved, place, kind)
    assert_refused(saved, "modules.json", kind)


@pytest.mark.parametrize("kind", ["sentence_transformers.models.BoW", "sentence_transformers.models.StaticEmbedding"])
def test_unknown_first_modules_are_refused(kind: str, saved: Path) -> None:
    set_type(saved, 0, kind)
    assert_refused(saved, "modules.json", kind)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_foreign_code_is_refused(place: int, saved: Path) -> None:
    set_type(saved, place, "modeling_own.Pooling")
    assert_refused(saved, "modules.json", "modeling_own.Pooling", "never run")


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("1_Pooling/config.json", "pooling_mode_median_tokens"),
        ("2_Dense/config.json", "dropout"),
        ("sentence_bert_config.json", "query_expansion"),
        ("config_sentence_transformers.json", "rerank"),
    ],
)
def test_unknown_keys_are_refused(file: str, key: str, version: str, saved: Path) -> None:
    directory = in_format(version, saved)
    edit_json(directory / file, **{key: True})
    assert_refused(directory, str(directory / file), key)


@pytest.mark.parametrize("name", ["torch.nn.modules.activation.Hardtanh", "modeling_own.Swoosh", "Tanh"])
def test_unknown_activations_are_refused(name: str, saved: Path) -> None:
    edit_json(saved / "2_Dense" / "config.json", activation_function=name)
    assert_refused(saved, "2_Dense/config.json", "activation_function", name)


def test_unknown_pooling_modes_are_refused(saved: Path) -> None:
    edit_json(saved / "1_Pooling" / "config.json", pooling_mode="median")
    assert_refused(saved, "1_Pooling/config.json", "pooling_mode", "median")


def test_another_task_of_the_transformer_is_refused(saved: Path) -> None:
    edit_json(saved / "sentence_bert_config.json", transformer_task="fill-mask")
    assert_refused(saved, "sentence_bert_config.json", "transformer_task", "fill-mask")


def test_a_pooling_of_another_width_is_refused(saved: Path) -> None:
    edit_json(saved / "1_Pooling" / "config.json", embedding_dimension=35)
    assert_refused(saved, "1_Pooling/config.json", "35", "36")


def test_the_reference_has_modules_of_these_names() -> None:
    """The module types that the files above name are sentence-transformers' own."""
    from sentence_transformers.sentence_transformer import modules

    for name in ("WeightedLayerPooling", "CNN", "LSTM", "WordWeights", "BoW", "StaticEmbedding"):
        assert hasattr(modules, name)
    assert Transformer.__module__ == "sentence_transformers.base.modules.transformer"
