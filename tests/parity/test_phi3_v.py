"""Phi-3-vision: texts against transformers' Phi3, the tower against its CLIP, and what lies between against a
description in numpy of Microsoft's code (transformers has no such class)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
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
from tokenizers import Tokenizer, normalizers
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3Model, PreTrainedTokenizerFast

from jaxpool import LLM
from jaxpool.batch import FEATURES, PIXELS, Inputs, unfold
from jaxpool.converters.rules import to_checkpoint
from jaxpool.images.phi3_v import interpolate, make_reader
from jaxpool.loading import family_table, load_stored
from jaxpool.models import clip, find_family, phi3_v
from jaxpool.models.family import Output
from jaxpool.params import flatten
from jaxpool.placement import load_to_mesh
from jaxpool.recipe import read_recipe
from jaxpool.rotary import Rotary, read_rotary
from jaxpool.sharding import replica_meshes
from jaxpool.tokens import load_tokenizer
from tests.parity.checkpoints import TEXTS, assert_close, edit_json, write_json
from tests.parity.decoder_tokenizers import bare_tokenizer, surround
from tests.parity.language_models import randomise
from tests.parity.pictures import pictures, read

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("compiled_programs", "tiny_tower")]

TILE, PATCH, LENGTH, TRAINED, IMAGE = 28, 7, 400, 40, 32_044
SIZES = ((64, 48), (31, 77), (200, 30), (7, 9), (1, 1), (30, 30), (28, 56), (150, 8))
TOWER = clip.Vision(
    hidden_size=40, num_layers=3, num_heads=5, mlp_size=44, activation="quick_gelu", epsilon=1e-5, image_size=TILE,
    patch_size=PATCH,
)  # fmt: skip
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# As published, but for the sizes.
CONFIG: dict[str, Any] = {
    "_name_or_path": "Phi-3-vision-128k-instruct",
    "architectures": ["Phi3VForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM"},
    "bos_token_id": 1,
    "embd_layer": {"embedding_cls": "image", "hd_transform_order": "sub_glb", "projection_cls": "mlp",
                   "use_hd_transform": True, "with_learnable_separator": True},
    "embd_pdrop": 0.0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 36,
    "img_processor": {"image_dim_out": 40, "model_name": "tiny", "name": "clip_vision_model", "num_img_tokens": 4},
    "initializer_range": 0.02,
    "intermediate_size": 50,
    "max_position_embeddings": LENGTH,
    "model_type": "phi3_v",
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "num_key_value_heads": 6,
    "original_max_position_embeddings": TRAINED,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1.1, 2.5, 7.0], "short_factor": [1.0, 1.05, 1.4], "type": "su"},
    "rope_theta": 10000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.1",
    "use_cache": True,
    "vocab_size": 32064,
}  # fmt: skip
# name -> changes of config.json
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "published": {},
    "windowed": {"sliding_window": 11, "rope_scaling": None},
    "last-layer": {"num_hidden_layers": 1, "hidden_act": "gelu",
                   "img_processor": CONFIG["img_processor"] | {"layer_idx": -1, "type_feature": "patch"}},
}  # fmt: skip
PROMPTS = ("<|user|>\n<|image_1|>\nfox and the lazy dog<|end|>", "<|image_1|> jugs", "wizards<|image_1|>")
TWO = "<|image_1|><|image_2|> seven wizards"


@pytest.fixture(scope="module")
def tiny_tower() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(phi3_v.TOWERS, "tiny", TOWER)  # type: ignore[arg-type]
        yield


def write_tokenizer(directory: Path, prepend: bool = True) -> None:
    """Llama's as the published one has it: "▁" stands before every piece between special tokens."""
    values = json.loads(bare_tokenizer("Llama").to_str())
    vocabulary = values["model"]["vocab"]
    vocabulary |= {f"filler {number}": number for number in range(len(vocabulary), IMAGE)}
    if prepend:
        values["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(values))
    if prepend:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<|image|>", "<|user|>", "<|end|>"])
    assert tokenizer.token_to_id("<|image|>") == IMAGE
    surround(tokenizer, "<s>")
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    write_json(directory / "tokenizer_config.json", named)


def build(directory: Path, name: str = "published") -> SimpleNamespace:
    """Writes a random checkpoint with tokenizer and processor; returns its parts in float64."""
    config = CONFIG | CHECKPOINTS[name]
    rope = dict(config["rope_scaling"] or {})
    if rope:
        rope = {"rope_type": "longrope", "original_max_position_embeddings": TRAINED, "rope_theta": 10_000.0,
                "short_factor": rope["short_factor"], "long_factor": rope["long_factor"]}  # fmt: skip
    known = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "hidden_act", "max_position_embeddings", "original_max_position_embeddings",
             "rms_norm_eps", "sliding_window")  # fmt: skip
    made = Phi3Config(**{key: config[key] for key in known}, rope_parameters=rope or None, pad_token_id=0)
    made._attn_implementation = "eager"
    text = Phi3Model(made)
    randomise(text)
    vision = CLIPVisionConfig(
        hidden_size=40, num_hidden_layers=3, num_attention_heads=5, intermediate_size=44, image_size=TILE,
        patch_size=PATCH, hidden_act="quick_gelu",
    )  # fmt: skip
    vision._attn_implementation = "eager"
    tower = CLIPVisionModel(vision)
    randomise(tower, 1)
    generator = torch.Generator().manual_seed(2)
    shapes = {"glb_GN": (1, 1, 160), "sub_GN": (1, 1, 1, 160), "img_projection.0.weight": (36, 160),
              "img_projection.0.bias": (36,), "img_projection.2.weight": (36, 36), "img_projection.2.bias": (36,)}  # fmt: skip
    own = {key: 0.2 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    seen = "model.vision_embed_tokens"
    state = {f"model.{key}": tensor for key, tensor in text.state_dict().items()}
    state |= {f"{seen}.{key}": tensor for key, tensor in own.items()}
    state |= {
        f"{seen}.img_processor.vision_model.{key.removeprefix('vision_model.')}": tensor
        for key, tensor in tower.state_dict().items()
    }
    state["lm_head.weight"] = torch.zeros(2, 2)
    write_json(directory / "config.json", {key: value for key, value in config.items() if value is not None})
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, directory / "model.safetensors")
    write_tokenizer(directory)
    write_json(directory / "preprocessor_config.json", {
        "auto_map": {"AutoImageProcessor": "image_processing_phi3_v.Phi3VImageProcessor"}, "image_mean": MEAN,
        "image_processor_type": "Phi3VImageProcessor", "image_std": STD, "num_crops": 6, "num_img_tokens": 144,
        "processor_class": "Phi3VProcessor",
    })  # fmt: skip
    return SimpleNamespace(
        text=text.double().eval(), tower=tower.double().eval(), layer=config["img_processor"].get("layer_idx", -2),
        own={key: tensor.double().numpy() for key, tensor in own.items()},
        tokenizer=PreTrainedTokenizerFast.from_pretrained(directory),
    )  # fmt: skip


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tower: None
) -> SimpleNamespace:
    directory = tmp_path_factory.mktemp(request.param)
    model = build(directory, request.param)
    recipe = read_recipe(directory)
    params = load_to_mesh(recipe, replica_meshes(None, None)[0], np.float32)["backbone"]
    return SimpleNamespace(model=model, directory=directory, recipe=recipe, params=params)


# The description


def transformed(image: Image.Image, crops: int, side: int = TILE) -> torch.Tensor:
    """A picture's tiles [1 + n, 3, side, side] in float32, the whole first, and its grid (lines, columns)."""
    standing = image.size[0] < image.size[1]
    if standing:
        image = image.transpose(Image.TRANSPOSE)
    ratio = image.size[0] / image.size[1]
    scale = 1
    while scale * np.ceil(scale / ratio) <= crops:
        scale += 1
    scale -= 1
    width = scale * side
    height = int(width / ratio)
    target = int(np.ceil(height / side) * side)
    sheet = Image.new("RGB", (width, target), (255, 255, 255))
    sheet.paste(image.resize((width, height), Image.BILINEAR), (0, int((target - height) / 2)))
    if standing:
        sheet = sheet.transpose(Image.TRANSPOSE)
    pixels = torch.tensor(np.asarray(sheet)).permute(2, 0, 1).float() / 255
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    whole = torch.nn.functional.interpolate(pixels[None], size=(side, side), mode="bicubic")
    lines, columns = pixels.shape[1] // side, pixels.shape[2] // side
    tiles = [
        pixels[:, y * side : (y + 1) * side, x * side : (x + 1) * side] for y in range(lines) for x in range(columns)
    ]
    made = torch.cat([whole, torch.stack(tiles)])
    made.grid = (lines, columns)
    return made


def merged(features: np.ndarray, lines: int, columns: int) -> np.ndarray:
    """Tiles' patches [lines · columns, P, C] as a grid of squares [L, K, 4 C]."""
    side, channels = math.isqrt(features.shape[1]), features.shape[2]
    grid = np.zeros((lines * side, columns * side, channels))
    for number, tile in enumerate(features):
        y, x = divmod(number, columns)
        grid[y * side : (y + 1) * side, x * side : (x + 1) * side] = tile.reshape(side, side, channels)
    return np.concatenate([grid[0::2, 0::2], grid[0::2, 1::2], grid[1::2, 0::2], grid[1::2, 1::2]], -1)


def rows_of(model: SimpleNamespace, image: Image.Image, crops: int) -> np.ndarray:
    """What stands in a text for a picture."""
    pixels = transformed(image, crops)
    with torch.no_grad():
        hidden = model.tower(pixels.double(), output_hidden_states=True).hidden_states[model.layer][:, 1:].numpy()
    line, between = model.own["sub_GN"].reshape(1, -1), model.own["glb_GN"].reshape(1, -1)

    def ended(grid: np.ndarray) -> np.ndarray:
        return np.concatenate([np.concatenate([row, line]) for row in grid])

    x = np.concatenate([ended(merged(hidden[1:], *pixels.grid)), between, ended(merged(hidden[:1], 1, 1))])
    return projected(model, x)


def projected(model: SimpleNamespace, x: np.ndarray) -> np.ndarray:
    own = model.own
    inner = torch.nn.functional.gelu(torch.tensor(x @ own["img_projection.0.weight"].T + own["img_projection.0.bias"]))
    return inner.numpy() @ own["img_projection.2.weight"].T + own["img_projection.2.bias"]


def told_of(model: SimpleNamespace, text: str, images: Sequence[Image.Image], crops: int = 6) -> SimpleNamespace:
    """A prompt's ids, the rows of its pictures and its hidden states."""
    rows = [rows_of(model, image, crops) for image in images]
    ids: list[int] = []
    chunks = re.split(r"<\|image_\d+\|>", text)
    for number, chunk in enumerate(chunks):
        ids += model.tokenizer(chunk).input_ids
        if number < len(rows):
            ids += [IMAGE] * len(rows[number])
    given = np.array(ids)
    embeddings = model.text.embed_tokens.weight.detach().numpy()[given]
    if rows:
        embeddings[given == IMAGE] = np.concatenate(rows)
    inner: list[torch.Tensor] = []
    hook = lambda module, args, output: inner.append(output if torch.is_tensor(output) else output[0])  # noqa: E731
    handles = [layer.register_forward_hook(hook) for layer in model.text.layers]
    with torch.no_grad():
        hidden = model.text(inputs_embeds=torch.tensor(embeddings)[None], use_cache=False).last_hidden_state
    for handle in handles:
        handle.remove()
    return SimpleNamespace(
        ids=given, rows=np.concatenate(rows) if rows else None, embeddings=embeddings,
        layers=torch.cat(inner).numpy(), hidden=hidden[0].numpy(),
    )  # fmt: skip


# Ours


def see(checkpoint: SimpleNamespace, tiles: Sequence[Mapping[str, np.ndarray]]) -> Output:
    """What the tower makes of tiles, one a row."""
    recipe, tower = checkpoint.recipe, phi3_v.FAMILY.tower
    length, fixed, arrays = tower.patches(recipe.config, recipe.pictures)
    assert fixed
    inputs = Inputs.of_shape(len(tiles), length, 1, partial(np.zeros, dtype=np.int32), arrays)
    for row, tile in enumerate(tiles):
        inputs.lengths[row], inputs.ids[row], inputs.arrays[PIXELS][row] = length, tile["ids"], tile[PIXELS]
    compute = jax.jit(lambda p, i: tower.forward(p, unfold(i), recipe.config, capture=("embeddings", "layer")))
    return jax.tree.map(np.asarray, compute(checkpoint.params, inputs))


def test_pixels(checkpoint: SimpleNamespace) -> None:
    images, grid = pictures(SIZES), TILE // PATCH
    for crops in (1, 6, 16):
        for image, picture in zip(images, read(checkpoint.recipe, images, num_crops=crops), strict=True):
            wanted = transformed(image, crops)
            assert len(picture.tiles) == len(wanted)
            lines, columns = wanted.grid
            assert len(picture.rows) == (lines * columns + 1) * 4 + 1 + (lines + 1) * 2
            for tile, pixels in zip(picture.tiles, wanted.numpy(), strict=True):
                patches = np.zeros((grid**2, 3 * PATCH**2), np.float32)
                patches[tile["ids"][: grid**2] - 1] = tile[PIXELS][: grid**2]
                again = patches.reshape(grid, grid, 3, PATCH, PATCH).transpose(2, 0, 3, 1, 4).reshape(3, TILE, TILE)
                np.testing.assert_allclose(again, pixels, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(1344, 336), (336, 336), (672, 1008)])
def test_interpolation(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).standard_normal((3, height, width)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(torch.tensor(pixels)[None], size=(336, 336), mode="bicubic")[0]
    np.testing.assert_allclose(interpolate(pixels, 336), wanted, atol=1e-4)


def test_pictures_intermediate_by_intermediate(checkpoint: SimpleNamespace) -> None:
    recipe, model, images = checkpoint.recipe, checkpoint.model, pictures(SIZES)
    ours, count = read(recipe, images), (TILE // PATCH) ** 2
    out = see(checkpoint, [tile for picture in ours for tile in picture.tiles])
    start = 0
    for image, picture in zip(images, ours, strict=True):
        tiles = slice(start, start + len(picture.tiles))
        start = tiles.stop
        with torch.no_grad():
            told = model.tower(transformed(image, 6).double(), output_hidden_states=True).hidden_states
        # Places in the tower's own order: the class token, then line by line.
        order = np.argsort(picture.tiles[0]["ids"][: count + 1])
        assert len(out.captured["layer"]) == recipe.config.seen_layer == len(told) + model.layer
        assert_close(out.captured["embeddings"][tiles][:, order], told[0], 1e-4)
        for layer, hidden in zip(out.captured["layer"], told[1:], strict=False):
            assert_close(layer[tiles][:, order], hidden, 1e-4)
        for place, name in ((-2, "glb_GN"), (-1, "sub_GN")):
            assert_close(out.hidden[tiles.start, place], projected(model, model.own[name].ravel()), 1e-4)
        assert_close(np.concatenate(out.hidden[tiles])[picture.rows], rows_of(model, image, 6), 1e-4)


@partial(jax.jit, static_argnums=0)
def _compiled(config: Any, params: Any, inputs: Inputs) -> Output:
    return phi3_v.FAMILY.run(params, unfold(inputs), config, capture=phi3_v.FAMILY.captures)


@pytest.mark.parametrize("prompt", ["jugs of liquid", "seven wizards " * 9, *PROMPTS, TWO])
def test_texts_intermediate_by_intermediate(checkpoint: SimpleNamespace, prompt: str) -> None:
    """Both shorter and longer than the texts of the training, side by side in a row."""
    images = pictures(SIZES[: prompt.count("<|image_")])
    told, short = told_of(checkpoint.model, prompt, images), told_of(checkpoint.model, "fox", [])
    arrays = {} if told.rows is None else phi3_v.text_arrays(checkpoint.recipe.config, np.float32)
    inputs = Inputs.of_shape(1, LENGTH, 2, partial(np.zeros, dtype=np.int32), arrays)
    first, both = len(short.ids), len(short.ids) + len(told.ids)
    inputs.ids[0, :both] = np.concatenate([short.ids, told.ids])
    inputs.lengths[0] = first, len(told.ids)
    if told.rows is not None:
        inputs.arrays[FEATURES][0][inputs.ids[0] == IMAGE] = told.rows
    out = _compiled(checkpoint.recipe.config, checkpoint.params, inputs)
    for text, place in ((short, slice(0, first)), (told, slice(first, both))):
        assert_close(out.captured["embeddings"][0, place], text.embeddings, 1e-4)
        for layer, wanted in zip(out.captured["layer"], text.layers, strict=True):
            assert_close(layer[0, place], wanted, 1e-4)
        assert_close(out.hidden[0, place], text.hidden, 1e-4)


def test_a_whole_directory(checkpoint: SimpleNamespace) -> None:
    """Texts, and prompts with a picture or two, in one call; some with options of their own."""
    images, texts = pictures(SIZES), [text for text in TEXTS if text and len(text) < 200 and "\x00" not in text]
    shown = [(PROMPTS[i % 3], [image], 6 - i % 2) for i, image in enumerate(images)] + [(TWO, images[:2], 6)]
    mixed = [*[(text, [], 6) for text in texts], *shown]
    prompts = [
        {"prompt": text, "multi_modal_data": {"image": images}}
        | ({} if crops == 6 else {"mm_processor_kwargs": {"num_crops": crops}})
        if images
        else text
        for text, images, crops in mixed
    ]
    with LLM(checkpoint.directory) as llm:
        outputs = llm.embed(prompts, use_tqdm=False)
    for (text, images, crops), output in zip(mixed, outputs, strict=True):
        told = told_of(checkpoint.model, text, images, crops)
        assert list(output.prompt_token_ids) == told.ids.tolist()
        wanted = told.hidden[-1] / np.linalg.norm(told.hidden[-1])
        np.testing.assert_allclose(output.outputs.embedding, wanted, atol=1e-4)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_tower: None) -> Path:
    directory = tmp_path_factory.mktemp("plain")
    build(directory)
    return directory


def test_converts_back(plain: Path) -> None:
    recipe = read_recipe(plain)
    restored = dict(to_checkpoint(flatten(load_stored(recipe)["backbone"]), family_table(recipe)))
    state = {key.removeprefix("model."): tensor for key, tensor in load_file(plain / "model.safetensors").items()}
    state = {key: tensor for key, tensor in state.items() if not ("lm_head" in key or "post_layernorm" in key)}
    assert set(restored) == set(state)
    for key, tensor in state.items():
        assert np.array_equal(restored[key], tensor.numpy()), key


def test_what_prompts_and_options_may_say(plain: Path) -> None:
    recipe = read_recipe(plain)
    reader = make_reader(recipe.config, recipe.pictures, load_tokenizer(plain))
    assert reader.write("a <|image_1|> b<|image_2|>", 2) == "a <|image|><s> b<|image|><s>"
    for text, count in (("a", 1), ("<|image_2|>", 1), ("<|image_2|><|image_1|>", 2), ("<|image_1|>", 2)):
        with pytest.raises(ValueError, match="in order"):
            reader.write(text, count)
    for size, options, message in (
        ((9, 9), {"num_crops": 0}, "num_crops"),
        ((9, 9), {"do_normalize": False}, "do_normalize"),
        ((900, 1), {}, "too narrow"),
    ):
        with pytest.raises(ValueError, match=message):
            reader.read(Image.new("RGB", size), options)


def test_a_tokenizer_whose_texts_run_on_is_refused(plain: Path, tmp_path: Path) -> None:
    recipe = read_recipe(plain)
    write_tokenizer(tmp_path, prepend=False)
    with pytest.raises(ValueError, match="behind"):
        make_reader(recipe.config, recipe.pictures, load_tokenizer(tmp_path))


def test_a_processor_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    edit_json(tmp_path / "preprocessor_config.json", antialias=True)
    recipe = read_recipe(tmp_path)
    with pytest.raises(ValueError, match="antialias"):
        make_reader(recipe.config, recipe.pictures, load_tokenizer(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear' is not known to Phi-3"),
        ({"rope_scaling": {"type": "su", "long_factor": [1, 2, 3]}}, "short_factor"),
        ({"rope_scaling": {"type": "su", "long_factor": [1, 2], "short_factor": [1, 2, 3]}}, "long_factor"),
        ({"embd_layer": CONFIG["embd_layer"] | {"hd_transform_order": "glb_sub"}}, "hd_transform_order"),
        ({"embd_layer": CONFIG["embd_layer"] | {"more": 1}}, "more"),
        ({"img_processor": CONFIG["img_processor"] | {"model_name": "openai/clip-vit-base-patch32"}}, "model_name"),
        ({"img_processor": CONFIG["img_processor"] | {"layer_idx": 3}}, "layer_idx"),
        ({"img_processor": CONFIG["img_processor"] | {"type_feature": "cls_patch"}}, "type_feature"),
        ({"img_processor": CONFIG["img_processor"] | {"num_img_tokens": 144}}, "num_img_tokens"),
        ({"img_processor": None}, "img_processor"),
        ({"vision_feature_layer": 3}, "vision_feature_layer"),
    ],
)
def test_what_is_not_understood_is_refused(changes: dict[str, Any], message: str) -> None:
    values = CONFIG | changes
    with pytest.raises(ValueError, match=message):
        find_family(values)[0].config_from_hf(values)


def test_the_published_sizes(plain: Path) -> None:
    vision = CONFIG["img_processor"] | {"model_name": "openai/clip-vit-large-patch14-336", "image_dim_out": 1024,
                                        "num_img_tokens": 144}  # fmt: skip
    config = phi3_v.config_from_hf(CONFIG | {"img_processor": vision})
    assert (config.rows, config.seen_layer, config.vision.positions) == (144, 23, 577)
    assert phi3_v.patches(config, read_recipe(plain).pictures).length == 4 * (144 + 2)


def test_longrope_is_read_by_either_name() -> None:
    factors = {"long_factor": [2.0, 3.0], "short_factor": [1.0, 1.0], "original_max_position_embeddings": 8}
    old, new = (read_rotary({"type": name, **factors}, 4, 16, 100.0) for name in ("su", "longrope"))
    assert old == new
    assert isinstance(old, Rotary)
    assert hash(old)
