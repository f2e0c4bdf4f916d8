"""LLaVA-NeXT against transformers' torch model: pixels, the rows of a picture, texts with and without pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

from jaxpool import LLM
from jaxpool.batch import FEATURES, Inputs, unfold
from jaxpool.converters.rules import to_checkpoint
from jaxpool.images.llava_next import best_pinpoint, make_reader, rows_of
from jaxpool.loading import family_table, load_stored
from jaxpool.models import find_family
from jaxpool.models.family import Output
from jaxpool.params import flatten
from jaxpool.placement import load_to_mesh
from jaxpool.recipe import Recipe, read_recipe
from jaxpool.sharding import replica_meshes
from jaxpool.tokens import load_tokenizer
from tests.parity.checkpoints import TEXTS, assert_close, edit_json, randomise, read_json
from tests.parity.language_models import write_words
from tests.parity.pictures import pictures, read, see

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("compiled_programs")]

TILE, PATCH, LENGTH = 28, 7, 480
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
TEXT = {"model_type": "llama", "hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
        "intermediate_size": 50, "num_hidden_layers": 2, "max_position_embeddings": LENGTH}  # fmt: skip
VISION = {"model_type": "clip_vision_model", "hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 44,
          "num_hidden_layers": 3, "image_size": TILE, "patch_size": PATCH, "projection_dim": 24}  # fmt: skip
# What the published preprocessor_config.json have, beside what our transformers writes.
PROCESSOR = {"size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE},
             "image_grid_pinpoints": PINPOINTS}  # fmt: skip
# Sides that fill a grid, or a part of it, with lines or columns left out; the last leave out half of the patches.
SIZES = ((64, 48), (31, 77), (200, 30), (7, 9), (1, 1), (30, 30), (56, 28), (300, 2), (3, 400))
# name -> (text sizes, vision sizes, the rest of config.json, layout of the checkpoint's keys)
CHECKPOINTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "e5-v": ({}, {}, {}, "old"),
    "mistral": ({"model_type": "mistral", "sliding_window": 37}, {"hidden_act": "gelu"},
                {"projector_hidden_act": "gelu_pytorch_tanh", "multimodal_projector_bias": False}, "new"),
    "several-layers": ({"attention_bias": True}, {"num_hidden_layers": 4}, {"vision_feature_layer": [0, -3, 3]}, "new"),
    "last-layer": ({"num_hidden_layers": 1}, {"patch_size": 14}, {"vision_feature_layer": -1}, "saved"),
}  # fmt: skip
PROMPTS = ("<image>\nSummary above image in one word: ", "<image>", "fox <image> and the lazy dog <image>jugs")


def build(directory: Path, name: str = "e5-v") -> LlavaNextForConditionalGeneration:
    """Writes a random checkpoint with tokenizer and processor; returns the model in float64."""
    text, vision, rest, layout = CHECKPOINTS[name]
    tokenizer = write_words(directory, "Llama", added={"<image>": True, "<|eot_id|>": True})
    config = LlavaNextConfig(
        text_config=TEXT | {"vocab_size": tokenizer.get_vocab_size()} | text, vision_config=VISION | vision,
        image_token_index=tokenizer.token_to_id("<image>"), image_grid_pinpoints=PINPOINTS, **rest,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = LlavaNextForConditionalGeneration(config)
    randomise(model)
    model.save_pretrained(directory)
    if layout != "saved":
        state = {spell(key, layout): tensor.contiguous() for key, tensor in model.state_dict().items()}
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    LlavaNextImageProcessorPil(**PROCESSOR).save_pretrained(directory)
    edit_json(
        directory / "preprocessor_config.json", aspect_ratio_setting="anyres", processor_class="LlavaNextProcessor"
    )
    return model.double().eval()


def spell(key: str, layout: str) -> str:
    """A parameter's name as checkpoints have it: those of transformers before 4.52, or since."""
    key = key.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")
    key = key.replace("vision_tower.", "vision_tower.vision_model.")
    if layout == "new":
        return key if key.startswith("lm_head") else f"model.{key}"
    key = key.replace("language_model.", "language_model.model.")
    return f"language_model.{key}" if key.startswith("lm_head") else key


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    directory = tmp_path_factory.mktemp(request.param)
    model = build(directory, request.param)
    recipe = read_recipe(directory)
    params = load_to_mesh(recipe, replica_meshes(None, None)[0], np.float32)["backbone"]
    patch = recipe.config.vision.patch_size
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil.from_pretrained(directory), PreTrainedTokenizerFast.from_pretrained(directory),
        patch_size=patch, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return SimpleNamespace(model=model, directory=directory, recipe=recipe, params=params, processor=processor)


def told_of(checkpoint: SimpleNamespace, text: str, images: Sequence[Image.Image]) -> SimpleNamespace:
    """A prompt's ids, the rows of its pictures and its hidden states, as transformers has them."""
    if not images:
        given = dict(checkpoint.processor.tokenizer(text, return_tensors="pt"))
        rows = None
    else:
        given = dict(checkpoint.processor(images=list(images), text=text, return_tensors="pt"))
        given["pixel_values"] = given["pixel_values"].double()
    given.pop("token_type_ids", None)
    with torch.no_grad():
        if images:
            seen = checkpoint.model.model.get_image_features(given["pixel_values"], given["image_sizes"])
            rows = torch.cat(list(seen.pooler_output)).numpy()
        out = checkpoint.model.model(**given, output_hidden_states=True, use_cache=False)
        inner: list[torch.Tensor] = []
        hook = lambda module, args, output: inner.append(output if torch.is_tensor(output) else output[0])  # noqa: E731
        handles = [layer.register_forward_hook(hook) for layer in checkpoint.model.model.language_model.layers]
        checkpoint.model.model(**given, use_cache=False)
        for handle in handles:
            handle.remove()
    return SimpleNamespace(
        ids=given["input_ids"][0].numpy(), rows=rows, layers=torch.cat(inner).numpy(),
        hidden=out.last_hidden_state[0].numpy(),
    )  # fmt: skip


def test_pixels_are_the_processors(checkpoint: SimpleNamespace) -> None:
    images = pictures(SIZES)
    patch = checkpoint.recipe.config.vision.patch_size
    grid = TILE // patch
    for image, picture in zip(images, read(checkpoint.recipe, images), strict=True):
        wanted = checkpoint.processor.image_processor([image])["pixel_values"][0]
        assert len(picture.tiles) == len(wanted)
        for tile, pixels in zip(picture.tiles, wanted, strict=True):
            assert tile["pixels"].dtype == np.uint8
            ours = np.asarray(checkpoint.recipe.pictures.normalise(tile["pixels"][1:]))
            again = ours.reshape(grid, grid, 3, patch, patch).transpose(2, 0, 3, 1, 4).reshape(3, TILE, TILE)
            np.testing.assert_allclose(again, pixels, atol=1e-5)


def test_pictures_intermediate_by_intermediate(checkpoint: SimpleNamespace) -> None:
    recipe, model, images = checkpoint.recipe, checkpoint.model.model, pictures(SIZES)
    ours = read(recipe, images)
    out = see(recipe, checkpoint.params, [t for p in ours for t in p.tiles], ("embeddings", "attention", "layer"))
    start = 0
    for image, picture in zip(images, ours, strict=True):
        given = checkpoint.processor.image_processor([image], return_tensors="pt")
        pixels = given["pixel_values"].double()
        with torch.no_grad():
            told = model.vision_tower(pixels[0], output_hidden_states=True).hidden_states
            rows = model.get_image_features(pixels, given["image_sizes"]).pooler_output[0]
        tiles = slice(start, start + len(picture.tiles))
        start = tiles.stop
        assert_close(out.captured["embeddings"][tiles], told[0])
        assert len(out.captured["layer"]) == max(recipe.config.seen_layers)
        for layer, hidden in zip(out.captured["layer"], told[1:], strict=False):
            assert_close(layer[tiles], hidden)
        seen = torch.cat([told[number] for number in recipe.config.seen_layers], dim=-1)
        with torch.no_grad():
            assert_close(out.hidden[tiles, 1:], model.multi_modal_projector(seen[:, 1:]), 1e-4)
        assert_close(out.hidden[tiles.start, 0], model.image_newline.detach())
        assert_close(np.concatenate(out.hidden[tiles])[picture.rows], rows, 1e-4)


@partial(jax.jit, static_argnums=0)
def _compiled(recipe_key: Any, params: Any, inputs: Inputs) -> Output:
    family, config = recipe_key
    return family.run(params, unfold(inputs), config, capture=family.captures)


def run(recipe: Recipe, params: Any, ids: np.ndarray, rows: np.ndarray | None) -> Mapping[str, np.ndarray]:
    """One prompt's intermediates; its rows are given."""
    assert recipe.family.tower is not None
    assert recipe.family.tower.text is not None
    arrays = {} if rows is None else recipe.family.tower.text(recipe.config, np.float32)
    inputs = Inputs.of_shape(1, LENGTH, 1, partial(np.zeros, dtype=np.int32), arrays)
    inputs.ids[0, : len(ids)] = ids
    inputs.lengths[0, 0] = len(ids)
    if rows is not None:
        inputs.arrays[FEATURES][0, : len(ids)][ids == recipe.config.image_token] = rows
    out = _compiled((recipe.family, recipe.config), params, inputs)
    return {"hidden": out.hidden[0, : len(ids)], "embeddings": out.captured["embeddings"][0, : len(ids)],
            "layer": np.asarray(out.captured["layer"])[:, 0, : len(ids)]}  # fmt: skip


@pytest.mark.parametrize("prompt", ["jugs of liquid", *PROMPTS])
def test_texts_intermediate_by_intermediate(checkpoint: SimpleNamespace, prompt: str) -> None:
    images = pictures(SIZES[: prompt.count("<image>")])
    told = told_of(checkpoint, prompt, images)
    ours = run(checkpoint.recipe, checkpoint.params, told.ids, told.rows)
    table = checkpoint.model.model.get_input_embeddings().weight.detach().numpy()
    embeddings = table[told.ids]
    if images:
        embeddings[told.ids == checkpoint.recipe.config.image_token] = told.rows
    assert_close(ours["embeddings"], embeddings)
    for layer, wanted in zip(ours["layer"], told.layers, strict=True):
        assert_close(layer, wanted, 1e-4)
    assert_close(ours["hidden"], told.hidden, 1e-4)


def test_a_whole_directory(checkpoint: SimpleNamespace) -> None:
    """Texts, and prompts with a picture or two, in one call."""
    images, texts = pictures(SIZES), [text for text in TEXTS if text and len(text) < 300]
    shown = [(PROMPTS[i % 2], [image]) for i, image in enumerate(images)] + [(PROMPTS[2], images[:2])]
    mixed = [*[(text, []) for text in texts], *shown]
    prompts = [{"prompt": text, "multi_modal_data": {"image": images}} if images else text for text, images in mixed]
    with LLM(checkpoint.directory) as llm:
        outputs = llm.embed(prompts, use_tqdm=False)
    for (text, images), output in zip(mixed, outputs, strict=True):
        told = told_of(checkpoint, text, images)
        assert len(output.prompt_token_ids) == len(told.ids)
        wanted = told.hidden[-1] / np.linalg.norm(told.hidden[-1])
        np.testing.assert_allclose(output.outputs.embedding, wanted, atol=1e-5)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plain")
    build(directory)
    return directory


def test_converts_back(plain: Path) -> None:
    recipe = read_recipe(plain)
    restored = dict(to_checkpoint(flatten(load_stored(recipe)["backbone"]), family_table(recipe)))
    stored = load_file(plain / "model.safetensors")
    state = {key: tensor for key, tensor in stored.items() if not ("lm_head" in key or "post_layernorm" in key)}
    assert set(restored) == set(state)
    for key, tensor in state.items():
        assert np.array_equal(restored[key], tensor.numpy()), key


def test_options_of_a_prompt_reach_the_processor(plain: Path) -> None:
    recipe, image = read_recipe(plain), pictures()[0]
    (picture,) = read(recipe, [image], image_grid_pinpoints=[[28, 28]])
    assert len(picture.tiles) == 2
    (other,) = read(recipe, [image], resample=0)
    (usual,) = read(recipe, [image])
    assert not np.array_equal(other.tiles[1]["pixels"], usual.tiles[1]["pixels"])
    for options, message in (
        ({"image_grid_pinpoints": [[28, 30]]}, "multiples of 28"),
        ({"crop_size": {"height": 14, "width": 14}}, "28²"),
        ({"do_normalize": False}, "the checkpoint's own affair"),
        ({"num_crops": 3}, "num_crops"),
    ):
        with pytest.raises(ValueError, match=message):
            read(recipe, [image], **options)


def test_a_prompt_names_its_pictures(plain: Path) -> None:
    with LLM(plain) as llm:
        for prompt in ("fox", "<image><image>"):
            with pytest.raises(ValueError, match="and 1 were given"):
                llm.embed({"prompt": prompt, "multi_modal_data": {"image": pictures()[0]}}, use_tqdm=False)
        token = load_tokenizer(plain).token_id("<image>")
        ids = {"prompt_token_ids": [5, token, 6], "multi_modal_data": {"image": pictures()[0]}}
        assert len(llm.embed(ids, use_tqdm=False)) == 1


def test_grids() -> None:
    """The published grids, against what transformers says of every picture's tokens."""
    from transformers.image_processing_utils import select_best_resolution

    pinpoints = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
    rng = np.random.default_rng(0)
    counted = LlavaNextProcessor.__new__(LlavaNextProcessor)
    counted.image_processor = SimpleNamespace(image_grid_pinpoints=[list(pinpoint) for pinpoint in pinpoints])
    counted.patch_size, counted.num_additional_image_tokens = 14, 1
    for height, width in [(1, 5000), (5000, 1), (1, 1), (336, 336), *rng.integers(1, 1500, (200, 2)).tolist()]:
        best = best_pinpoint(height, width, pinpoints)
        assert best == tuple(select_best_resolution((height, width), pinpoints))
        rows = rows_of(height, width, (best[0] // 336, best[1] // 336), 24)
        assert len(rows) == counted._get_number_of_features(height, width, 336, 336) - 1


def test_what_e5_v_leaves_out_of_its_config() -> None:
    """The published config.json: what is Llama's default is not in it."""
    text = {"_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct", "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 128_000, "eos_token_id": 128_009, "intermediate_size": 14_336,
            "max_position_embeddings": 8192, "model_type": "llama", "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0, "torch_dtype": "bfloat16", "vocab_size": 128_320}  # fmt: skip
    vision = {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
              "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
              "vocab_size": 32_000}  # fmt: skip
    values = {"architectures": ["LlavaNextForConditionalGeneration"], "ignore_index": -100,
              "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
              "image_token_index": 128_256, "model_type": "llava_next", "projector_hidden_act": "gelu",
              "text_config": text, "tie_word_embeddings": False, "torch_dtype": "float16",
              "transformers_version": "4.41.2", "use_image_newline_parameter": True, "vision_config": vision,
              "vision_feature_layer": -2, "vision_feature_select_strategy": "default"}  # fmt: skip
    family, _ = find_family(values)
    config = family.config_from_hf(values)
    assert (config.hidden_size, config.num_layers, config.num_heads, config.kv_heads) == (4096, 32, 32, 8)
    assert (config.image_token, config.seen_layers, config.vision.positions) == (128_256, (23,), 577)
    assert config.max_length == 8192


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
        ({"vision_feature_layer": 9}, "vision_feature_layer"),
        ({"vision_feature_layer": 0}, "no layer"),
        ({"vision_feature_layer": []}, "vision_feature_layer"),
        ({"image_grid_pinpoints": [[28, 30]]}, "image_grid_pinpoints"),
        ({"image_token_id": 1}, "image_token_id"),
        ({"use_image_newline_parameter": False}, "use_image_newline_parameter"),
        ({"text_config": {"model_type": "qwen2"}}, "qwen2"),
        ({"vision_config": VISION | {"model_type": "siglip_vision_model"}}, "siglip"),
        ({"vision_config": None}, "vision_config"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type"),
    ],
)
def test_what_is_not_understood_is_refused(plain: Path, changes: dict[str, Any], message: str) -> None:
    values = read_json(plain / "config.json") | changes
    with pytest.raises(ValueError, match=message):
        find_family(values)[0].config_from_hf(values)


def test_a_processor_with_another_grid_is_refused(plain: Path, tmp_path: Path) -> None:
    build(tmp_path)
    edit_json(tmp_path / "preprocessor_config.json", image_grid_pinpoints=[[28, 56]])
    recipe = read_recipe(tmp_path)
    with pytest.raises(ValueError, match="preprocessor_config"):
        make_reader(recipe.config, recipe.pictures, load_tokenizer(tmp_path))
