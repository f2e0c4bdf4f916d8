"""SigLIP against transformers' torch model: what pads a text, pixels, both towers, whole directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from jaxpool import LLM, PoolerConfig, load
from jaxpool.converters.rules import to_checkpoint
from jaxpool.loading import family_table, load_stored
from jaxpool.params import flatten
from jaxpool.placement import load_to_mesh
from jaxpool.recipe import read_recipe
from jaxpool.sharding import replica_meshes
from tests.parity.checkpoints import TEXTS, assert_close, edit_json, randomise, write_json
from tests.parity.decoder_tokenizers import blanks_spelt, surround
from tests.parity.encoder_tokenizers import _pieces
from tests.parity.pictures import pictures, read, see
from tests.parity.test_backbones import _load, _run

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("compiled_programs")]

LENGTH = 20
TEXT = {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 50, "num_hidden_layers": 3,
        "max_position_embeddings": LENGTH}  # fmt: skip
VISION = {"hidden_size": 36, "num_attention_heads": 4, "intermediate_size": 44, "num_hidden_layers": 2,
          "image_size": 28, "patch_size": 7}  # fmt: skip


def _write_first(directory: Path) -> Tokenizer:
    """SigLIP's: lower case without punctuation, "text </s>", padded with "</s>"."""
    tokenizer = Tokenizer(models.Unigram(_pieces(["<pad>", "</s>", "<unk>"]), unk_id=2))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Lowercase(), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(),
    ])  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    surround(tokenizer, "", "</s>")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>",
        model_input_names=["input_ids"], model_max_length=LENGTH,
    ).save_pretrained(directory)  # fmt: skip
    return tokenizer


def _write_second(directory: Path) -> Tokenizer:
    """SigLIP 2's: Gemma's, "text<eos>", padded with "<pad>", which is 0 and not the 1 of config.json's default."""
    tokenizer = blanks_spelt("Gemma")
    surround(tokenizer, "", "<eos>")
    tokenizer.save(str(directory / "tokenizer.json"))
    tokens = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad")}
    settings = {"tokenizer_class": "GemmaTokenizer", "model_input_names": ["input_ids"], "padding_side": "right"}
    write_json(directory / "tokenizer_config.json", tokens | settings)
    return tokenizer


# name -> (text sizes, vision sizes, tokenizer)
CHECKPOINTS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Path], Tokenizer]]] = {
    "siglip": ({}, {}, _write_first),
    "siglip2": ({"projection_size": 40}, {"hidden_size": 40}, _write_second),
    "left-over-pixels": ({"hidden_act": "gelu"}, {"image_size": 33, "layer_norm_eps": 1e-3}, _write_first),
    "one-layer": (
        {"num_hidden_layers": 1, "max_position_embeddings": 16, "layer_norm_eps": 1e-3},
        {"num_hidden_layers": 1, "patch_size": 14, "hidden_act": "gelu"},
        _write_second,
    ),
}


def build(directory: Path, name: str = "siglip") -> SiglipModel:
    """Writes a random checkpoint with tokenizer and processor; returns what transformers reads, in float64."""
    text, vision, write = CHECKPOINTS[name]
    directory.mkdir(parents=True, exist_ok=True)
    size = {"vocab_size": write(directory).get_vocab_size()}
    config = SiglipConfig(text_config=TEXT | size | text, vision_config=VISION | vision)
    model = SiglipModel(config)
    randomise(model)
    model.save_pretrained(directory)
    side = config.vision_config.image_size
    SiglipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(directory)
    return SiglipModel.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager").eval()


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    directory = tmp_path_factory.mktemp(request.param)
    return SimpleNamespace(model=build(directory, request.param), directory=directory, recipe=read_recipe(directory))


def test_texts_intermediate_by_intermediate(checkpoint: SimpleNamespace) -> None:
    rng = np.random.default_rng(1)
    longest = checkpoint.recipe.config.max_length
    sequences = [rng.integers(0, 60, n) for n in (longest, 1, 7, longest)]
    ours = _run(_load(checkpoint.directory), [[ids] for ids in sequences])
    packed = _run(_load(checkpoint.directory), [sequences])
    start = 0
    for row, ids in enumerate(sequences):
        given, length = torch.tensor(ids)[None], len(ids)
        with torch.no_grad():
            told = checkpoint.model.text_model(given, output_hidden_states=True)
            features = checkpoint.model.get_text_features(given).pooler_output
        assert_close(ours["embeddings"][row, :length], told.hidden_states[0][0])
        assert_close(ours["layer"][:, row, :length], torch.stack(told.hidden_states[1:])[:, 0])
        assert_close(ours["norm"][row, :length], told.last_hidden_state[0])
        assert_close(ours["hidden"][row, length - 1], features[0])
        assert_close(packed["hidden"][0, start + length - 1], features[0])
        start += length


def test_pixels_are_the_processors(checkpoint: SimpleNamespace) -> None:
    images, vision = pictures(), checkpoint.recipe.config.vision
    patch, grid = vision.patch_size, vision.image_size // vision.patch_size
    wanted = SiglipImageProcessorPil.from_pretrained(checkpoint.directory)(images)["pixel_values"]
    for picture, pixels in zip(read(checkpoint.recipe, images), wanted, strict=True):
        (tile,) = picture.tiles
        ours = np.asarray(checkpoint.recipe.pictures.normalise(tile["pixels"]))
        again = ours.reshape(grid, grid, 3, patch, patch).transpose(2, 0, 3, 1, 4).reshape(3, grid * patch, -1)
        np.testing.assert_allclose(again, pixels[:, : grid * patch, : grid * patch], atol=1e-5)


def test_pictures_intermediate_by_intermediate(checkpoint: SimpleNamespace) -> None:
    images, recipe = pictures(), checkpoint.recipe
    params = load_to_mesh(recipe, replica_meshes(None, None)[0], np.float32)["backbone"]
    pixels = torch.tensor(_pixels(checkpoint, images), dtype=torch.float64)
    found: list[torch.Tensor] = []
    head = checkpoint.model.vision_model.head
    hook = head.attention.register_forward_hook(lambda _m, _i, output: found.append(output[0]))
    with torch.no_grad():
        told = checkpoint.model.vision_model(pixels, output_hidden_states=True)
    hook.remove()
    tiles = [tile for picture in read(recipe, images) for tile in picture.tiles]
    out = see(recipe, params, tiles, ("embeddings", "layer", "norm", "query"))
    assert_close(out.captured["embeddings"], told.hidden_states[0])
    for layer, hidden in enumerate(told.hidden_states[1:]):
        assert_close(out.captured["layer"][layer], hidden)
    assert_close(out.captured["norm"], told.last_hidden_state)
    assert_close(out.captured["query"], found[0])
    assert_close(out.hidden[:, 0], told.pooler_output)


def test_a_whole_directory(checkpoint: SimpleNamespace) -> None:
    images, texts = pictures(), list(TEXTS)
    length = checkpoint.recipe.config.max_length
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
    with LLM(checkpoint.directory) as llm:
        outputs = llm.embed([*texts, *images], truncate_prompt_tokens=-1, use_tqdm=False)
    vectors = np.array([output.outputs.embedding for output in outputs])
    batch = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    assert list(batch) == ["input_ids"]
    pixels = torch.tensor(_pixels(checkpoint, images), dtype=torch.float64)
    with torch.no_grad():
        wanted = torch.cat([
            checkpoint.model.get_text_features(**batch).pooler_output,
            checkpoint.model.get_image_features(pixels).pooler_output,
        ]).numpy()  # fmt: skip
    np.testing.assert_allclose(vectors, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)


def test_the_way_back(checkpoint: SimpleNamespace) -> None:
    """Written back, the checkpoint is what transformers wrote, but for what scores need."""
    back = dict(to_checkpoint(flatten(load_stored(checkpoint.recipe)["backbone"]), family_table(checkpoint.recipe)))
    state = {key: value for key, value in checkpoint.model.state_dict().items() if not key.startswith("logit_")}
    assert set(back) == set(state)
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key].numpy().astype(np.float32))


def test_the_pure_function_pads_too(tmp_path: Path) -> None:
    build(tmp_path)
    model, texts = load(tmp_path), ["fox", "the lazy dog", "seven wizards box with jugs"]
    with LLM(tmp_path) as llm:
        wanted = llm.embed_array(texts)
    np.testing.assert_allclose(model.apply(model.params, model.tokenize(texts)), wanted, atol=1e-6)


def test_a_length_that_has_no_room_for_the_padding(tmp_path: Path) -> None:
    build(tmp_path)
    with pytest.raises(ValueError, match="max_model_len is 8, and all texts of this model have"):
        LLM(tmp_path, max_model_len=8)


def test_ids_are_padded_as_texts(tmp_path: Path) -> None:
    build(tmp_path, "siglip2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("the quick fox")["input_ids"]
    assert tokenizer.pad_token_id == 0
    assert SiglipConfig.from_pretrained(tmp_path).text_config.pad_token_id == 1
    with LLM(tmp_path) as llm:
        text, typed = llm.embed(["the quick fox", {"prompt_token_ids": ids}], use_tqdm=False)
    assert_close(text.outputs.embedding, typed.outputs.embedding, 1e-6)


def _pixels(checkpoint: SimpleNamespace, images: list[Any]) -> np.ndarray:
    return np.stack(SiglipImageProcessorPil.from_pretrained(checkpoint.directory)(images)["pixel_values"])


# What is refused


@pytest.mark.parametrize(
    ("part", "edits", "message"),
    [
        ("vision_config", {"vision_use_head": False}, "`vision_use_head` is False"),
        ("vision_config", {"image_size": [28, 28]}, r"`image_size` is \[28, 28\], expected a positive integer"),
        ("vision_config", {"num_channels": 1}, "`num_channels` is 1"),
        ("text_config", {"projection_size": 35}, "texts end in 35 values .* pictures in 36"),
        ("text_config", {"causal": True}, "`causal` = True is not known"),
    ],
)
def test_settings_that_are_not_understood(part: str, edits: dict[str, Any], message: str, tmp_path: Path) -> None:
    build(tmp_path)
    config = {"text_config": TEXT, "vision_config": VISION}
    edit_json(tmp_path / "config.json", **{part: config[part] | edits})
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"pad_token": ...}, "`pad_token` is no token of the model"),
        ({"pad_token": "[absent]"}, "`pad_token` is no token of the model"),
        ({"padding_side": "left"}, "`padding_side` is 'left'"),
    ],
)
def test_tokenizers_that_do_not_pad(edits: dict[str, Any], message: str, tmp_path: Path) -> None:
    build(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", **edits)
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json: {message}"):
        LLM(tmp_path)


def test_no_parts_of_texts(tmp_path: Path) -> None:
    build(tmp_path)
    with pytest.raises(ValueError, match="enable_chunked_processing: all texts of this model have 20 tokens"):
        LLM(tmp_path, pooler_config=PoolerConfig(enable_chunked_processing=True))
