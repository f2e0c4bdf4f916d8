"""CLIP against transformers' torch model and sentence-transformers: pixels, both towers, whole directories."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from jaxpool import LLM
from jaxpool.placement import load_to_mesh
from jaxpool.recipe import read_recipe
from jaxpool.sharding import replica_meshes
from tests.parity.checkpoints import TEXTS, assert_close, edit_json, randomise
from tests.parity.encoder_tokenizers import _byte_level
from tests.parity.pictures import pictures, read, see
from tests.parity.test_backbones import _load, _run

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("compiled_programs")]

IMAGE, PATCH, LENGTH = 28, 7, 20
TEXT = {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 50, "num_hidden_layers": 3,
        "max_position_embeddings": LENGTH, "vocab_size": 420, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}  # fmt: skip
VISION = {"hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 44, "num_hidden_layers": 2,
          "image_size": IMAGE, "patch_size": PATCH}  # fmt: skip
PROCESSOR = {"size": {"shortest_edge": IMAGE}, "crop_size": {"height": IMAGE, "width": IMAGE}}
# name -> (text sizes, vision sizes, projection, edits of config.json)
CHECKPOINTS: dict[str, tuple[dict[str, Any], dict[str, Any], int, dict[str, Any]]] = {
    "clip": ({}, {}, 24, {}),
    "gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu", "layer_norm_eps": 1e-3}, 36, {}),
    "one-layer": ({"num_hidden_layers": 1}, {"num_hidden_layers": 1, "patch_size": 14}, 50, {}),
    "parts-of-old": ({}, {}, 24, {"text_config_dict": None, "vision_config": {}, "vision_config_dict": VISION}),
}


def build(directory: Path, name: str = "clip") -> CLIPModel:
    """Writes a random checkpoint with tokenizer and processor; returns what transformers reads, in float64."""
    text, vision, projection, edits = CHECKPOINTS[name]
    config = CLIPConfig(text_config=TEXT | text, vision_config=VISION | vision, projection_dim=projection)
    model = CLIPModel(config)
    randomise(model)
    model.save_pretrained(directory)
    edit_json(directory / "config.json", **edits)
    write_clip_tokenizer(directory)
    CLIPImageProcessorPil(**PROCESSOR).save_pretrained(directory)
    return CLIPModel.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager").eval()


def write_clip_tokenizer(directory: Path) -> None:
    """ "<|startoftext|> text <|endoftext|>", padded with the latter, as CLIP's."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = _byte_level(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A {special[1]}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in special],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[1],
        unk_token=special[1], model_max_length=LENGTH,
    ).save_pretrained(directory)  # fmt: skip


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    directory = tmp_path_factory.mktemp(request.param)
    return SimpleNamespace(model=build(directory, request.param), directory=directory, recipe=read_recipe(directory))


def test_texts_intermediate_by_intermediate(checkpoint: SimpleNamespace) -> None:
    rng = np.random.default_rng(1)
    sequences = [np.array([0, *rng.integers(2, 400, n), 1]) for n in (0, 1, 5, 18)]
    ours = _run(_load(checkpoint.directory), [[ids] for ids in sequences])
    for row, ids in enumerate(sequences):
        given = torch.tensor(ids)[None]
        with torch.no_grad():
            told = checkpoint.model.text_model(given, output_hidden_states=True)
            features = checkpoint.model.get_text_features(given).pooler_output
        length = len(ids)
        assert_close(ours["embeddings"][row, :length], told.hidden_states[0][0])
        assert_close(ours["layer"][:, row, :length], torch.stack(told.hidden_states[1:])[:, 0])
        assert_close(ours["norm"][row, :length], told.last_hidden_state[0])
        assert_close(ours["hidden"][row, length - 1], features[0])


def test_pixels_are_the_processors(checkpoint: SimpleNamespace) -> None:
    images = pictures()
    patch = checkpoint.recipe.config.vision.patch_size
    wanted = CLIPImageProcessorPil.from_pretrained(checkpoint.directory)(images)["pixel_values"]
    for picture, pixels in zip(read(checkpoint.recipe, images), wanted, strict=True):
        (tile,) = picture.tiles
        ours = np.asarray(checkpoint.recipe.pictures.normalise(tile["pixels"][1:]))
        grid = IMAGE // patch
        again = ours.reshape(grid, grid, 3, patch, patch).transpose(2, 0, 3, 1, 4).reshape(3, IMAGE, IMAGE)
        np.testing.assert_allclose(again, pixels, atol=1e-5)


def test_pictures_intermediate_by_intermediate(checkpoint: SimpleNamespace) -> None:
    images = pictures()
    recipe = checkpoint.recipe
    params = load_to_mesh(recipe, replica_meshes(None, None)[0], np.float32)["backbone"]
    pixels = np.stack(CLIPImageProcessorPil.from_pretrained(checkpoint.directory)(images)["pixel_values"])
    with torch.no_grad():
        told = checkpoint.model.vision_model(torch.tensor(pixels, dtype=torch.float64), output_hidden_states=True)
        features = checkpoint.model.get_image_features(torch.tensor(pixels, dtype=torch.float64)).pooler_output
    tiles = [tile for picture in read(recipe, images) for tile in picture.tiles]
    out = see(recipe, params, tiles, ("embeddings", "layer", "pooled"))
    assert_close(out.captured["embeddings"], told.hidden_states[0])
    for layer, hidden in enumerate(told.hidden_states[1:]):
        assert_close(out.captured["layer"][layer], hidden)
    assert_close(out.captured["pooled"][:, 0], told.pooler_output)
    assert_close(out.hidden[:, 0], features)


def test_a_whole_directory(checkpoint: SimpleNamespace) -> None:
    images, texts = pictures(), [*(text for text in TEXTS if text), "a text <|endoftext|> and more of it"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint.directory)
    with LLM(checkpoint.directory) as llm:
        outputs = llm.embed([*texts, *images], truncate_prompt_tokens=-1, use_tqdm=False)
    vectors = np.array([output.outputs.embedding for output in outputs])
    batch = tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    pixels = np.stack(CLIPImageProcessorPil.from_pretrained(checkpoint.directory)(images)["pixel_values"])
    with torch.no_grad():
        wanted = torch.cat([
            checkpoint.model.get_text_features(**{k: v for k, v in batch.items() if k != "token_type_ids"}).pooler_output,
            checkpoint.model.get_image_features(torch.tensor(pixels, dtype=torch.float64)).pooler_output,
        ]).numpy()  # fmt: skip
    np.testing.assert_allclose(vectors, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)
