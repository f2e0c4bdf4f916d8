"""Qwen2-VL against transformers' torch model: pixels, the rows of a picture, places, texts with and without pictures."""

from __future__ import annotations

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
from safetensors.torch import save_file
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from jaxpool import LLM, PoolingParams
from jaxpool.batch import FEATURES, PLACES, Inputs, unfold
from jaxpool.converters.rules import to_checkpoint
from jaxpool.images.picture import Picture
from jaxpool.images.qwen2_vl import fit, make_reader
from jaxpool.loading import family_table
from jaxpool.models import find_family
from jaxpool.models.family import Output
from jaxpool.models.qwen2_vl import LONGEST, Area, patches
from jaxpool.params import flatten
from jaxpool.placement import load_to_mesh
from jaxpool.recipe import Recipe, read_recipe
from jaxpool.sharding import replica_meshes
from jaxpool.tokens import load_tokenizer
from tests.parity.checkpoints import TEXTS, assert_close, edit_json, randomise, read_json, write_json
from tests.parity.language_models import write_words
from tests.parity.pictures import pictures, read, see

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("compiled_programs")]

PATCH, LENGTH = 7, 480
SQUARE = (2 * PATCH) ** 2
SECTIONS = [1, 2, 3]
MARKS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
TEXT = {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 50,
        "num_hidden_layers": 2, "max_position_embeddings": LENGTH, "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "mrope_section": SECTIONS, "rope_theta": 1e6}}  # fmt: skip
VISION = {"depth": 3, "embed_dim": 40, "num_heads": 5, "hidden_size": 36, "patch_size": PATCH, "mlp_ratio": 2}
PROCESSOR = {"patch_size": PATCH, "min_pixels": 4 * SQUARE, "max_pixels": 20 * SQUARE}
# Sides that are cut, grown, rounded to nothing, and as unlike as they may be.
SIZES = ((64, 48), (31, 77), (200, 30), (7, 9), (1, 1), (30, 30), (56, 28), (400, 2), (3, 400))
# name -> (text sizes, vision sizes, the processor's settings, layout of config.json and of the checkpoint's keys)
CHECKPOINTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "dse": ({}, {}, {}, "flat"),
    "saved": ({"num_key_value_heads": 3}, {"hidden_act": "gelu"}, {"min_pixels": 1, "max_pixels": 12 * SQUARE}, "new"),
    "window": ({"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, "num_hidden_layers": 3},
               {"temporal_patch_size": 1, "depth": 1, "mlp_ratio": 1}, {"temporal_patch_size": 1}, "twice"),
    "yarn": ({"rms_norm_eps": 1e-6, "rope_parameters": {
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 240, "mrope_section": [3, 2, 1],
        "rope_theta": 1e4}}, {"temporal_patch_size": 3}, {"temporal_patch_size": 3}, "headless"),
}  # fmt: skip
# As the published dse-qwen2 is used: documents, queries with a picture that says nothing.
DOCUMENT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + PLACEHOLDER
    + "What is shown in this image?<|im_end|>\n<|endoftext|>"
)  # fmt: skip
QUERY = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + PLACEHOLDER
    + "Query: seven wizards<|im_end|>\n<|endoftext|>"
)  # fmt: skip
PROMPTS = (DOCUMENT, "<|image_pad|>", f"fox {PLACEHOLDER} and the lazy dog {PLACEHOLDER}jugs<|image_pad|>")


def build(directory: Path, name: str = "dse") -> Qwen2VLForConditionalGeneration:
    """Writes a random checkpoint with tokenizer and processor; returns the model in float64."""
    text, vision, processor, layout = CHECKPOINTS[name]
    tokenizer = write_words(directory, "Qwen2", added=dict.fromkeys(MARKS, True))
    ids = {name: tokenizer.token_to_id(f"<|{mark}|>") for name, mark in (
        ("image_token_id", "image_pad"), ("video_token_id", "video_pad"),
        ("vision_start_token_id", "vision_start"), ("vision_end_token_id", "vision_end"),
    )}  # fmt: skip
    config = Qwen2VLConfig(
        text_config=TEXT | {"vocab_size": tokenizer.get_vocab_size()} | text, vision_config=VISION | vision,
        tie_word_embeddings=layout == "flat", **ids,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = Qwen2VLForConditionalGeneration(config)
    randomise(model)
    model.save_pretrained(directory)
    state = {spell(key, layout): tensor.contiguous() for key, tensor in model.state_dict().items()}
    state = {key: tensor for key, tensor in state.items() if key != "lm_head.weight" or layout in ("new", "twice")}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", lay_out(read_json(directory / "config.json"), layout))
    Qwen2VLImageProcessorPil(**PROCESSOR | processor).save_pretrained(directory)
    if layout == "flat":
        size = {name: PROCESSOR[name] for name in ("min_pixels", "max_pixels")}
        edit_json(directory / "preprocessor_config.json", size=size, **size, processor_class="Qwen2VLProcessor")
    return model.double().eval()


def spell(key: str, layout: str) -> str:
    """A parameter's name as checkpoints have it: the published ones, those since 4.52, those without a head."""
    if layout == "flat":
        return key.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
    return key.removeprefix("model.") if layout == "headless" else key


def lay_out(values: dict[str, Any], layout: str) -> dict[str, Any]:
    """config.json as transformers' versions wrote it."""
    text = dict(values["text_config"])
    if layout == "flat":
        rope = {"type": "mrope", "mrope_section": text.pop("rope_parameters")["mrope_section"]}
        vision = values["vision_config"] | {"in_chans": 3, "spatial_patch_size": PATCH, "model_type": "qwen2_vl"}
        vision = {name: value for name, value in vision.items() if name not in ("rope_parameters", "in_channels")}
        rest = {name: value for name, value in values.items() if name != "text_config"}
        return text | rest | {"vision_config": vision, "rope_scaling": rope, "rope_theta": 1e6, "vision_token_id": 5}
    if layout == "twice":
        text["image_token_id"] = values["image_token_id"]
        return text | values | {"text_config": text}
    if layout == "headless":
        return values | {"architectures": ["Qwen2VLModel"]}
    return values


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    directory = tmp_path_factory.mktemp(request.param)
    model = build(directory, request.param)
    recipe = read_recipe(directory)
    return SimpleNamespace(
        model=model, directory=directory, recipe=recipe,
        params=load_to_mesh(recipe, replica_meshes(None, None)[0], np.float32)["backbone"],
        processor=Qwen2VLImageProcessorPil.from_pretrained(directory),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(directory),
    )  # fmt: skip


def given_of(checkpoint: SimpleNamespace, text: str, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
    """What transformers' model takes of a prompt; each picture's token as often as it has rows."""
    seen: dict[str, torch.Tensor] = {}
    first, *others = text.split("<|image_pad|>")
    if images:
        seen = dict(checkpoint.processor(list(images), return_tensors="pt"))
        seen["pixel_values"] = seen["pixel_values"].double()
        counts = [int(count) for count in seen["image_grid_thw"].prod(1) // 4]
        first += "".join("<|image_pad|>" * n + other for n, other in zip(counts, others, strict=True))
    ids = torch.tensor([checkpoint.tokenizer(first)["input_ids"]])
    marked = {"mm_token_type_ids": (ids == checkpoint.recipe.config.image_token).int()} if images else {}
    return {"input_ids": ids, **marked, **seen}


def told_of(checkpoint: SimpleNamespace, text: str, images: Sequence[Image.Image]) -> SimpleNamespace:
    """A prompt's ids, places, the rows of its pictures and its hidden states, as transformers has them."""
    given = given_of(checkpoint, text, images)
    model = checkpoint.model.model
    rows, places = None, None
    with torch.no_grad(), recorded(model.language_model.layers) as inner:
        hidden = model(**given, use_cache=False).last_hidden_state[0].numpy()
        if images:
            shown = [given[name] for name in ("pixel_values", "image_grid_thw")]
            rows = torch.cat(list(model.get_image_features(*shown).pooler_output))
            positions, _ = model.get_rope_index(given["input_ids"], given["mm_token_type_ids"], shown[1])
            places = positions[:, 0].T.numpy()
    ids, layers = given["input_ids"][0].numpy(), torch.cat(list(inner)).numpy()
    return SimpleNamespace(ids=ids, rows=rows, places=places, layers=layers, hidden=hidden)


class recorded:  # noqa: N801
    """What modules answer within the body, in order."""

    def __init__(self, modules: Iterator[torch.nn.Module]) -> None:
        self._modules, self._seen = list(modules), []

    def __enter__(self) -> list[torch.Tensor]:
        keep = lambda module, args, output: self._seen.append(output if torch.is_tensor(output) else output[0])  # noqa: E731
        self._handles = [module.register_forward_hook(keep) for module in self._modules]
        return self._seen

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def test_pixels_are_the_processors(checkpoint: SimpleNamespace) -> None:
    images, recipe = pictures(SIZES), checkpoint.recipe
    frames = recipe.config.vision.frames
    for image, picture in zip(images, read(recipe, images), strict=True):
        wanted = checkpoint.processor([image])
        (tile,) = picture.tiles
        assert tile["pixels"].dtype == np.uint8
        lines, columns = wanted["image_grid_thw"][0][1:]
        assert picture.grid == (lines // 2, columns // 2)
        assert len(picture.rows) == lines * columns // 4
        ours = np.asarray(recipe.pictures.normalise(tile["pixels"])).reshape(-1, 3, 1, PATCH**2)
        again = np.repeat(ours, frames, axis=2).reshape(len(ours), -1)
        np.testing.assert_allclose(again, wanted["pixel_values"], atol=1e-5)


def test_pictures_intermediate_by_intermediate(checkpoint: SimpleNamespace) -> None:
    recipe, tower, images = checkpoint.recipe, checkpoint.model.model.visual, pictures(SIZES)
    tiles = [tile for picture in read(recipe, images) for tile in picture.tiles]
    out = see(recipe, checkpoint.params, tiles, ("embeddings", "attention", "layer"))
    for number, image in enumerate(images):
        given = checkpoint.processor([image], return_tensors="pt")
        with torch.no_grad(), recorded([tower.patch_embed, *tower.blocks]) as inner:
            rows = tower(given["pixel_values"].double(), given["image_grid_thw"]).pooler_output
        length = len(inner[0])
        assert_close(out.captured["embeddings"][number, :length], inner[0], 1e-4)
        assert len(out.captured["layer"]) == len(inner) - 1
        for layer, wanted in zip(out.captured["layer"], inner[1:], strict=True):
            assert_close(layer[number, :length], wanted, 1e-4)
        assert_close(out.hidden[number, : len(rows)], rows, 1e-4)


@partial(jax.jit, static_argnums=0)
def _compiled(recipe_key: Any, params: Any, inputs: Inputs) -> Output:
    family, config = recipe_key
    return family.run(params, unfold(inputs), config, capture=family.captures)


def run(checkpoint: SimpleNamespace, told: SimpleNamespace) -> Mapping[str, np.ndarray]:
    """One prompt's intermediates; its rows and places are given."""
    recipe, ids = checkpoint.recipe, told.ids
    arrays = {} if told.rows is None else recipe.family.tower.text(recipe.config, np.float32)
    inputs = Inputs.of_shape(1, LENGTH, 1, partial(np.zeros, dtype=np.int32), arrays)
    inputs.ids[0, : len(ids)] = ids
    inputs.lengths[0, 0] = len(ids)
    if arrays:
        inputs.arrays[FEATURES][0, : len(ids)][ids == recipe.config.image_token] = told.rows
        inputs.arrays[PLACES][0, : len(ids)] = told.places
    out = _compiled((recipe.family, recipe.config), checkpoint.params, inputs)
    return {"hidden": out.hidden[0, : len(ids)], "embeddings": out.captured["embeddings"][0, : len(ids)],
            "layer": np.asarray(out.captured["layer"])[:, 0, : len(ids)]}  # fmt: skip


@pytest.mark.parametrize("prompt", ["seven wizards box with jugs of liquid", *PROMPTS])
def test_texts_intermediate_by_intermediate(checkpoint: SimpleNamespace, prompt: str) -> None:
    images = pictures(SIZES[: prompt.count("<|image_pad|>")])
    told = told_of(checkpoint, prompt, images)
    ours = run(checkpoint, told)
    embeddings = checkpoint.model.model.get_input_embeddings().weight.detach().numpy()[told.ids]
    if images:
        embeddings[told.ids == checkpoint.recipe.config.image_token] = told.rows
    assert_close(ours["embeddings"], embeddings)
    for layer, wanted in zip(ours["layer"], told.layers, strict=True):
        assert_close(layer, wanted, 1e-4)
    assert_close(ours["hidden"], told.hidden, 1e-4)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_places(checkpoint: SimpleNamespace, prompt: str) -> None:
    for sizes in (SIZES[:3], SIZES[4:7], SIZES[6:9]):
        images = pictures(sizes[: prompt.count("<|image_pad|>")])
        told = told_of(checkpoint, prompt, images)
        tokenizer = load_tokenizer(checkpoint.directory)
        reader = make_reader(checkpoint.recipe.config, checkpoint.recipe.pictures, tokenizer)
        (encoded,) = tokenizer.encode([reader.write(prompt, len(images))], LENGTH)
        ids, arrays = reader.place(encoded.ids, [reader.read(image, {}) for image in images])
        np.testing.assert_array_equal(ids, told.ids)
        np.testing.assert_array_equal(arrays[PLACES], told.places)
        assert arrays[PLACES].dtype == np.int32


def test_a_whole_directory(checkpoint: SimpleNamespace) -> None:
    """Texts, and prompts with a picture or several, in one call."""
    images, texts = pictures(SIZES), [text for text in TEXTS if text and len(text) < 150]
    blank = Image.new("RGB", (56, 56))
    shown = [(PROMPTS[i % 2], [image]) for i, image in enumerate(images)] + [(PROMPTS[2], images[:3])]
    mixed = [*[(text, []) for text in texts], *shown, (QUERY, [blank]), (QUERY, [blank.resize((1, 1))])]
    with LLM(checkpoint.directory) as llm:
        outputs = llm.embed([given(*prompt) for prompt in mixed], use_tqdm=False)
    for (text, images), output in zip(mixed, outputs, strict=True):
        told = told_of(checkpoint, text, images)
        assert len(output.prompt_token_ids) == len(told.ids)
        wanted = told.hidden[-1] / np.linalg.norm(told.hidden[-1])
        np.testing.assert_allclose(output.outputs.embedding, wanted, atol=1e-5)


def given(text: str, images: Sequence[Image.Image]) -> Any:
    return {"prompt": text, "multi_modal_data": {"image": list(images)}} if images else text


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plain")
    build(directory)
    return directory


def test_fewer_dimensions(plain: Path) -> None:
    """Matryoshka, as dse-qwen2 is used: cut, then normalised."""
    prompts = [given(DOCUMENT, pictures()[:1]), given(QUERY, [Image.new("RGB", (56, 56))]), "seven wizards"]
    with LLM(plain, hf_overrides={"is_matryoshka": True}) as llm:
        whole = [output.outputs.embedding for output in llm.embed(prompts, use_tqdm=False)]
        short = llm.embed(prompts, pooling_params=PoolingParams(dimensions=8), use_tqdm=False)
    for output, vector in zip(short, whole, strict=True):
        first = np.array(vector)[:8]
        np.testing.assert_allclose(output.outputs.embedding, first / np.linalg.norm(first), atol=1e-6)


def test_pictures_of_any_size_compile_nothing(plain: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(int(width), int(height)) for width, height in rng.integers(2, 300, (30, 2))]
    with LLM(plain, max_model_len=64) as llm:
        llm.warmup()
        compiled = llm.stats.compilations
        prompts = [given(f"fox {PLACEHOLDER}", [image]) for image in pictures(sizes)]
        outputs = llm.embed([*prompts, "fox", *prompts[:3]], use_tqdm=False)
        assert llm.stats.compilations == compiled
    for first, again in zip(outputs[:3], outputs[-3:], strict=True):
        np.testing.assert_allclose(first.outputs.embedding, again.outputs.embedding, atol=1e-6)


def test_shapes_are_the_processors() -> None:
    """At the published sizes and at tight ones; no picture has more patches than the tower makes room for."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    rng = np.random.default_rng(0)
    squares = {"published": (4, 16384), "tight": (1, 3), "same": (40, 40), "odd": (3, 7)}
    for fewest, most in squares.values():
        area = Area(fewest * 28**2, most * 28**2)
        room = area.squares(28)
        lengths = np.exp(rng.uniform(0, np.log(4000), (500, 2))).astype(int).tolist()
        for height, width in [(1, 200), (200, 1), (14, 14), (42, 70), (1, 1), (20, 4000), *lengths]:
            if max(height, width) > LONGEST * min(height, width):
                with pytest.raises(ValueError, match="at most 200 times"):
                    fit(height, width, area, 28)
                continue
            tall, wide = fit(height, width, area, 28)
            assert (tall, wide) == smart_resize(height, width, 28, area.fewest, area.most)
            assert tall * wide // 28**2 <= room


def test_options_of_a_prompt(plain: Path) -> None:
    recipe, image = read_recipe(plain), pictures()[0]

    def rows(**options: Any) -> int:
        (picture,) = read(recipe, [image], **options)
        assert isinstance(picture, Picture)
        return len(picture.rows)

    assert rows() == 15
    assert rows(max_pixels=6 * SQUARE) == rows(size={"longest_edge": 6 * SQUARE}) == 4
    assert rows(size={"shortest_edge": 18 * SQUARE}) == rows(min_pixels=18 * SQUARE, size={"min_pixels": 1}) == 20
    for options, message in (
        ({"max_pixels": 0}, "max_pixels"),
        ({"size": {"height": 14}}, "size"),
        ({"min_pixels": 600 * SQUARE, "max_pixels": 900 * SQUARE}, "takes at most"),
        ({"do_normalize": False}, "do_normalize"),
    ):
        with pytest.raises(ValueError, match=message):
            read(recipe, [image], **options)


def test_the_tower_has_room_for_what_a_text_has(plain: Path) -> None:
    recipe = read_recipe(plain)
    assert patches(recipe.config, recipe.pictures).length == 4 * Area(4 * SQUARE, 20 * SQUARE).squares(14)
    wide = recipe.pictures.__class__(settings={"max_pixels": 10**7})
    assert patches(recipe.config, wide).length == 4 * LENGTH


def test_a_prompt_names_its_pictures(plain: Path) -> None:
    picture = pictures()[0]
    with LLM(plain) as llm:
        for prompt in ("fox", PLACEHOLDER * 2):
            with pytest.raises(ValueError, match="1 pictures were given"):
                llm.embed(given(prompt, [picture]), use_tqdm=False)
        with pytest.raises(ValueError, match="video"):
            llm.embed(given(f"{PLACEHOLDER}<|video_pad|>", [picture]), use_tqdm=False)
        with pytest.raises(ValueError, match="200 times"):
            llm.embed(given(PLACEHOLDER, [Image.new("RGB", (500, 2))]), use_tqdm=False)
        token = load_tokenizer(plain).token_id("<|image_pad|>")
        ids = {"prompt_token_ids": [5, token, 6], "multi_modal_data": {"image": picture}}
        assert len(llm.embed(ids, use_tqdm=False)) == 1


def test_the_way_back(checkpoint: SimpleNamespace) -> None:
    """Written back, a checkpoint has the published ones' keys, which all versions of transformers read."""
    back = dict(to_checkpoint(flatten(checkpoint.params), family_table(checkpoint.recipe)))
    state = {spell(key, "flat"): value for key, value in checkpoint.model.state_dict().items() if "lm_head" not in key}
    assert set(back) == set(state)
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key].numpy().astype(np.float32))


PUBLISHED = {
    "architectures": ["Qwen2VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151_643,
    "eos_token_id": 151_645, "hidden_act": "silu", "hidden_size": 1536, "image_token_id": 151_655,
    "initializer_range": 0.02, "intermediate_size": 8960, "max_position_embeddings": 32_768, "max_window_layers": 28,
    "model_type": "qwen2_vl", "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    "rope_theta": 1_000_000.0, "sliding_window": 32_768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.45.2", "use_cache": False, "use_sliding_window": False, "video_token_id": 151_656,
    "vision_config": {"hidden_size": 1536, "in_chans": 3, "model_type": "qwen2_vl", "spatial_patch_size": 14},
    "vision_end_token_id": 151_653, "vision_start_token_id": 151_652, "vision_token_id": 151_654,
    "vocab_size": 151_936,
}  # fmt: skip


@pytest.mark.parametrize("rope", [{"type": "mrope", "mrope_section": [16, 24, 24]}, None, PUBLISHED["rope_scaling"]])
def test_a_published_config(rope: dict[str, Any] | None) -> None:
    family, _ = find_family(PUBLISHED)
    config = family.config_from_hf(PUBLISHED | {"rope_scaling": rope})
    assert (config.hidden_size, config.num_layers, config.num_heads, config.kv_heads) == (1536, 28, 12, 2)
    vision = config.vision
    assert (vision.hidden_size, vision.num_layers, vision.num_heads, vision.mlp_size) == (1280, 32, 16, 5120)
    assert (vision.patch_size, vision.frames, config.image_token, config.max_length) == (14, 2, 151_655, 32_768)
    (kind,) = config.pattern
    assert (kind.rotary.sections, kind.rotary.theta, kind.rotary.kind) == ((16, 24, 24), 1e6, "default")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24]}}, "mrope_section"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 25]}}, "mrope_section"),
        ({"rope_scaling": {"type": "shrink"}}, "shrink"),
        ({"head_dim": 64}, "head_dim"),
        ({"vision_config": {"hidden_size": 1537}}, "1537"),
        ({"vision_config": {"hidden_size": 1536, "spatial_merge_size": 3}}, "spatial_merge_size"),
        ({"vision_config": {"hidden_size": 1536, "in_chans": 1}}, "in_chans"),
        ({"vision_config": {"hidden_size": 1536, "embed_dim": 1000}}, "embed_dim"),
        ({"vision_config": {"hidden_size": 1536, "patch_size": [14, 14]}}, "patch_size"),
        ({"vision_config": {"hidden_size": 1536, "rope_parameters": {"rope_type": "linear"}}}, "axial"),
        ({"vision_config": {"hidden_size": 1536, "window_size": 112}}, "window_size"),
        ({"vision_config": 3}, "vision_config"),
        ({"text_config": {"hidden_size": 64}}, "hidden_size"),
        ({"deepstack": True}, "deepstack"),
    ],
)
def test_what_is_not_understood_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_family(PUBLISHED)[0].config_from_hf(PUBLISHED | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 14}, "patch_size"),
        ({"merge_size": 3}, "merge_size"),
        ({"temporal_patch_size": 1}, "temporal_patch_size"),
        ({"do_resize": False}, "do_resize"),
        ({"min_pixels": "many"}, "min_pixels"),
        ({"crop_size": None, "sharpen": True}, "sharpen"),
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
    ],
)
def test_another_processor_is_refused(plain: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    for name in ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((plain / name).read_bytes())
    edit_json(tmp_path / "preprocessor_config.json", **changes)
    recipe: Recipe = read_recipe(tmp_path)
    with pytest.raises(ValueError, match=message):
        make_reader(recipe.config, recipe.pictures, load_tokenizer(tmp_path))
