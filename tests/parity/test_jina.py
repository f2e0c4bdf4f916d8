"""jina-embeddings-v3 against a forward pass written apart from it, on weights into which one adapter is merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from jaxpool.batch import Inputs, unfold
from jaxpool.converters.checkpoint import open_checkpoint
from jaxpool.converters.jina import TABLE
from jaxpool.converters.rules import bind, to_checkpoint
from jaxpool.converters.transforms import CheckpointError
from jaxpool.models import find_family
from jaxpool.models.family import Output
from jaxpool.models.hf_config import ConfigError
from jaxpool.models.jina import FAMILY
from jaxpool.params import flatten, unflatten, unstack_layers
from jaxpool.recipe import read_recipe
from tests.parity.checkpoints import assert_close, read_json, write_json
from tests.tiny import JINA_CONFIG as CONFIG
from tests.tiny import JINA_TASKS as TASKS
from tests.tiny import jina_modules

pytestmark = pytest.mark.torch

State = dict[str, torch.Tensor]

PLAIN = {name: ... for name in CONFIG if name.startswith(("lora_", "load_", "task_"))}
# name -> changes of config.json (`...` takes a key out)
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "published": {},
    "another-base-rank-and-alpha": {"rotary_emb_base": 30.0, "lora_rank": 3, "lora_alpha": 2},
    "default-base": {"rotary_emb_base": ..., "num_hidden_layers": 1},
    "tanh-two-types-one-adapter": {
        "hidden_act": "gelu_new", "type_vocab_size": 2, "lora_adaptations": ["only"], "layer_norm_eps": 1e-3
    },
    "plain": PLAIN,
    "plain-untrained": {"load_trained_adapters": False},
}  # fmt: skip


def _config(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (CONFIG | changes).items() if value is not ...}


def _state(config: Mapping[str, Any], *, adapted: bool, pooler: bool) -> State:
    """A random checkpoint, under its keys without prefix."""
    generator = torch.Generator().manual_seed(0)
    width, inner = config["hidden_size"], config["intermediate_size"]
    count, rank = len(config.get("lora_adaptations", ())), config.get("lora_rank", 4)
    random = lambda *shape: torch.randn(shape, generator=generator) * 0.2  # noqa: E731
    state: State = {}

    def weight(name: str, rows: int, columns: int, down: Sequence[int], up: Sequence[int]) -> None:
        if not adapted:
            state[f"{name}.weight"] = random(rows, columns)
            return
        inside = f"{name}.parametrizations.weight"
        state[f"{inside}.original"] = random(rows, columns)
        state[f"{inside}.0.lora_A"], state[f"{inside}.0.lora_B"] = 2 * random(count, *down), 2 * random(count, *up)

    def table(name: str, rows: int) -> None:
        weight(name, rows, width, (rows, rank), (rank, width))

    def linear(name: str, out: int, into: int) -> None:
        weight(name, out, into, (rank, into), (out, rank))
        state[f"{name}.bias"] = random(out)

    def norm(name: str) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + random(width), random(width)

    table("embeddings.word_embeddings", config["vocab_size"])
    table("embeddings.token_type_embeddings", config["type_vocab_size"])
    norm("emb_ln")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{i}"
        linear(f"{layer}.mixer.Wqkv", 3 * width, width)
        linear(f"{layer}.mixer.out_proj", width, width)
        norm(f"{layer}.norm1")
        linear(f"{layer}.mlp.fc1", inner, width)
        linear(f"{layer}.mlp.fc2", width, inner)
        norm(f"{layer}.norm2")
    if pooler:
        linear("pooler.dense", width, width)
    return state


def _write(
    directory: Path,
    name: str = "published",
    *,
    pooler: bool = True,
    prefix: str = "roberta.",
    dtype: torch.dtype = torch.float32,
) -> None:
    config = _config(**CHECKPOINTS[name])
    state = _state(config, adapted=not name.startswith("plain"), pooler=pooler)
    write_json(directory / "config.json", config)
    save_file({prefix + key: value.to(dtype) for key, value in state.items()}, directory / "model.safetensors")


def _stored(directory: Path) -> State:
    return {key.removeprefix("roberta."): value for key, value in load_file(directory / "model.safetensors").items()}


# The reference: one sequence, one adapter


def _merge(state: State, config: Mapping[str, Any], adapter: int) -> State:
    """Plain weights in float64: original + B·A·α/rank of one adapter (embeddings: A·B); adapter 0 is none."""
    merged: State = {}
    inside = ".parametrizations.weight"
    for key, value in state.items():
        if ".lora_" in key:
            continue
        weight = value.double()
        if key.endswith(f"{inside}.original"):
            key = key.removesuffix(".original")
            a, b = (state[f"{key}.0.lora_{side}"].double() for side in "AB")
            if adapter:
                product = torch.matmul(*((a, b) if "embeddings" in key else (b, a)))[adapter - 1]
                weight = weight + product * config["lora_alpha"] / config["lora_rank"]
            key = key.replace(inside, ".weight")
        merged[key] = weight
    return merged


def _turn(x: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary positions as complex numbers: feature j and j + H/2 are one number; x is [N, T, H]."""
    length, half = x.shape[1], x.shape[2] // 2
    # Angles are float32 in the original too.
    wavelengths = torch.tensor(base, dtype=torch.float32) ** (torch.arange(half, dtype=torch.float32) / half)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * (1 / wavelengths)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(
        torch.ones(length, half).double(), angles.double()
    )
    return torch.cat([turned.real, turned.imag], dim=-1)


def _reference(directory: Path, ids: np.ndarray, adapter: int = 0) -> dict[str, np.ndarray]:
    config = read_json(directory / "config.json")
    w = _merge(_stored(directory), config, adapter)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], config["layer_norm_eps"])

    linear = lambda x, name: torch.nn.functional.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    gelu = partial(torch.nn.functional.gelu, approximate="none" if config["hidden_act"] == "gelu" else "tanh")
    base, heads = config.get("rotary_emb_base", 10000.0), config["num_attention_heads"]
    x = w["embeddings.word_embeddings.weight"][torch.from_numpy(ids)] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "emb_ln")
    seen: dict[str, Any] = {"embeddings": x, "attention": [], "layer": []}
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{i}"
        q, k, v = (
            part.reshape(len(ids), heads, -1).transpose(0, 1)
            for part in linear(x, f"{layer}.mixer.Wqkv").chunk(3, dim=-1)
        )
        scores = _turn(q, base) @ _turn(k, base).transpose(1, 2) / q.shape[-1] ** 0.5
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(ids), -1)
        x = norm(x + linear(mixed, f"{layer}.mixer.out_proj"), f"{layer}.norm1")
        seen["attention"].append(x)
        x = norm(x + linear(gelu(linear(x, f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2"), f"{layer}.norm2")
        seen["layer"].append(x)
    seen |= {"attention": torch.stack(seen["attention"]), "layer": torch.stack(seen["layer"]), "hidden": x}
    if "pooler.dense.weight" in w:
        seen["pooler"] = torch.tanh(linear(x, "pooler.dense"))
    return {name: value.numpy() for name, value in seen.items()}


# jaxpool's side


def _load(directory: Path, *, pooler: bool = True) -> SimpleNamespace:
    config = FAMILY.config_from_hf(read_json(directory / "config.json"))
    checkpoint = open_checkpoint(directory)
    has_pooler = pooler and any("pooler." in key for key in checkpoint.shapes)
    specs = FAMILY.param_specs(config) | (FAMILY.extras(config) if has_pooler else {})
    binding = bind(checkpoint.shapes, TABLE, specs)
    params = unflatten({path: leaf.read(checkpoint.read) for path, leaf in binding.items()})
    return SimpleNamespace(config=config, params=params)


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(config: Any, names: tuple[str, ...], params: Any, inputs: Inputs) -> Output:
    return FAMILY.run(params, unfold(inputs), config, capture=names)


Row = Sequence[tuple[np.ndarray, int]]
"""Sequences one behind the other, each with its adapter."""


def _run(ours: SimpleNamespace, rows: Sequence[Row], dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Hidden states and all captures of 3 packed rows of 64 tokens and up to 6 sequences."""
    inputs = Inputs.of_shape(3, 64, 6, partial(np.zeros, dtype=np.int32))
    for r, row in enumerate(rows):
        for place, (ids, adapter) in enumerate(row):
            start = inputs.lengths[r].sum()
            inputs.ids[r, start : start + len(ids)] = ids
            inputs.lengths[r, place], inputs.adapter[r, place] = len(ids), adapter
    names = tuple(name for name in FAMILY.captures if name != "pooler" or "pooler" in ours.params)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), ours.params)
    output = _compiled(ours.config, names, params, inputs)
    assert output.hidden.dtype == dtype
    return {"hidden": np.asarray(output.hidden)} | {name: np.asarray(x) for name, x in output.captured.items()}


def _sequences(*lengths: int) -> list[np.ndarray]:
    """Random ids, XLM-RoBERTa's special ones among them: rotary positions count them all."""
    rng = np.random.default_rng(len(lengths))
    return [rng.integers(0, CONFIG["vocab_size"], length) for length in lengths]


def _row(lengths: Sequence[int], adapters: Sequence[int]) -> Row:
    return list(zip(_sequences(*lengths), adapters, strict=True))


def _compare(directory: Path, rows: Sequence[Row], packed: dict[str, np.ndarray]) -> None:
    for r, row in enumerate(rows):
        start = 0
        for ids, adapter in row:
            alone = _reference(directory, ids, adapter)
            assert set(alone) == set(packed)
            for name, values in alone.items():
                assert_close(packed[name][..., r, start : start + len(ids), :], values)
            start += len(ids)


# Every adapter beside every other, and beside none.
MIXED = [
    _row((5, 1, 30, 7, 11), (1, 5, 0, 2, 3)),
    _row((17, 1, 1, 2, 9, 8), (4, 4, 0, 5, 1, 2)),
    _row((64,), (3,)),
]


def test_adapters_mixed_in_one_batch_are_each_as_if_merged(tmp_path: Path) -> None:
    _write(tmp_path)
    packed = _run(_load(tmp_path), MIXED)
    assert all(np.isfinite(values).all() for values in packed.values())
    _compare(tmp_path, MIXED, packed)


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name != "published"])
def test_every_intermediate(name: str, tmp_path: Path) -> None:
    _write(tmp_path, name, prefix="" if "one-adapter" in name else "roberta.")
    ours = _load(tmp_path)
    count = len(ours.config.adapters)
    assert count == (0 if name.startswith("plain") else len(read_json(tmp_path / "config.json")["lora_adaptations"]))
    rows = [[(ids, min(adapter, count)) for ids, adapter in row] for row in MIXED]
    _compare(tmp_path, rows, _run(ours, rows))


def test_adapters_differ_and_the_comparison_sees_it(tmp_path: Path) -> None:
    _write(tmp_path)
    ours, (ids,) = _load(tmp_path), _sequences(20)
    by_adapter = [_run(ours, [[(ids, adapter)]])["hidden"][0, :20] for adapter in range(len(TASKS) + 1)]
    for i, one in enumerate(by_adapter):
        assert all(np.abs(one - other).max() > 0.1 for other in by_adapter[:i])


def test_the_base_of_the_rotary_positions_is_config_jsons(tmp_path: Path) -> None:
    _write(tmp_path)
    ours, (ids,) = _load(tmp_path), _sequences(20)
    other = replace(ours.config, rotary=replace(ours.config.rotary, theta=10000.0))
    right, wrong = (_run(SimpleNamespace(**vars(ours) | {"config": c}), [[(ids, 1)]]) for c in (ours.config, other))
    assert np.abs(right["hidden"] - wrong["hidden"]).max() > 1e-3


@pytest.mark.parametrize("name", ["published", "plain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_stored_in_half(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    _write(tmp_path, name, dtype=dtype)
    rows = MIXED if name == "published" else [[(ids, 0) for ids, _ in row] for row in MIXED]
    _compare(tmp_path, rows, _run(_load(tmp_path), rows))


def test_computing_in_bfloat16(tmp_path: Path) -> None:
    _write(tmp_path, dtype=torch.bfloat16)
    ours, row = _load(tmp_path), [_row((9, 20), (5, 2))]
    exact, rounded = (_run(ours, row, dtype)["hidden"][0, :29] for dtype in (jnp.float32, jnp.bfloat16))
    assert 0 < np.abs(exact - rounded.astype(np.float32)).mean() < 0.05


def test_a_pooler_is_passed_over(tmp_path: Path) -> None:
    _write(tmp_path)
    ours = _load(tmp_path, pooler=False)
    assert "pooler" not in ours.params
    with_pooler = _run(_load(tmp_path), MIXED)
    assert with_pooler.pop("pooler").shape == with_pooler["hidden"].shape
    without = _run(ours, MIXED)
    assert set(without) == set(with_pooler)
    for name, values in without.items():
        assert_close(values, with_pooler[name], 5e-6)


def test_without_a_pooler(tmp_path: Path) -> None:
    _write(tmp_path, pooler=False)
    rows = MIXED[:1]
    _compare(tmp_path, rows, _run(_load(tmp_path), rows))


def test_unstacked_layers_compute_the_same(tmp_path: Path) -> None:
    _write(tmp_path)
    ours = _load(tmp_path)
    unstacked = SimpleNamespace(**vars(ours) | {"params": unstack_layers(ours.params)})
    for name, values in _run(unstacked, MIXED).items():
        assert_close(values, _run(ours, MIXED)[name], 5e-6)


@pytest.mark.skipif(not hasattr(transformers, "JinaEmbeddingsV3Model"), reason="transformers is older than the model")
@pytest.mark.parametrize("adapter", [0, 5])
def test_transformers_own_model_agrees(adapter: int, tmp_path: Path) -> None:
    """The reference above is written from what is known of the original; this one is not."""
    _write(tmp_path, "another-base-rank-and-alpha")
    hf = read_json(tmp_path / "config.json")
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size",
             "type_vocab_size", "max_position_embeddings", "layer_norm_eps", "pad_token_id")  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": hf["rotary_emb_base"]}
    theirs = transformers.JinaEmbeddingsV3Model(
        transformers.JinaEmbeddingsV3Config(**{name: hf[name] for name in sizes}, rope_parameters=rope)
    )
    names = (("emb_ln", "embeddings.LayerNorm"), ("encoder.layers", "layers"), ("mixer.out_proj", "self_attn.o_proj"),
             ("norm1", "post_attention_layernorm"), ("norm2", "post_mlp_layernorm"))  # fmt: skip
    state: State = {}
    for key, value in _merge(_stored(tmp_path), hf, adapter).items():
        for old, new in names:
            key = key.replace(old, new)
        if "mixer.Wqkv" in key:
            parts = zip("qkv", value.chunk(3), strict=True)
            state |= {key.replace("mixer.Wqkv", f"self_attn.{part}_proj"): rows for part, rows in parts}
        else:
            state[key] = value
    missing, unexpected = theirs.double().eval().load_state_dict(state, strict=False)
    assert not unexpected
    assert all("position_ids" in key or "token_type_ids" in key for key in missing)
    (ids,) = _sequences(40)
    with torch.inference_mode():
        hidden = theirs(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]
    assert_close(_run(_load(tmp_path), [[(ids, adapter)]])["hidden"][0, :40], hidden)


# The published directory


def test_the_published_directory_is_understood(tmp_path: Path) -> None:
    _write(tmp_path)
    jina_modules(tmp_path)
    recipe = read_recipe(tmp_path)
    assert (recipe.family.name, recipe.pooling, recipe.max_length) == (
        "jina",
        ("mean",),
        CONFIG["max_position_embeddings"],
    )
    assert recipe.config.adapters == tuple(TASKS)
    assert recipe.prompts["retrieval.query"].startswith("Represent the query")


def test_code_of_the_checkpoints_own_is_known_of_this_family_alone(tmp_path: Path) -> None:
    jina_modules(tmp_path)
    own = ("lora_", "load_", "task_", "use_", "rotary_", "emb_", "truncate_")
    drop = {name: ... for name in CONFIG if name.startswith(own)}
    write_json(tmp_path / "config.json", _config(**drop, position_embedding_type="absolute"))
    with pytest.raises(ValueError, match="code of the checkpoint's own"):
        read_recipe(tmp_path)


# Weights


@pytest.mark.parametrize("name", ["published", "tanh-two-types-one-adapter", "plain"])
def test_the_table_backwards_gives_the_checkpoint(name: str, tmp_path: Path) -> None:
    _write(tmp_path, name, dtype=torch.bfloat16)
    restored = dict(to_checkpoint(flatten(_load(tmp_path).params), TABLE))
    written = _stored(tmp_path)
    assert set(restored) == set(written)
    for key, tensor in restored.items():
        np.testing.assert_array_equal(tensor.astype(np.float32), written[key].float().numpy())


@pytest.mark.parametrize(
    ("written", "read_as", "named"),
    [
        ("published", "plain", r"lora_A' belongs to .*, which this model does not declare"),
        ("plain", "published", r"word_embeddings\.weight' belongs to .*, which this model does not declare"),
    ],
)
def test_weights_that_config_json_does_not_announce(written: str, read_as: str, named: str, tmp_path: Path) -> None:
    _write(tmp_path, written)
    write_json(tmp_path / "config.json", _config(**CHECKPOINTS[read_as]))
    with pytest.raises(CheckpointError, match=named):
        _load(tmp_path)


# config.json


def test_the_published_config_is_understood() -> None:
    published = CONFIG | {
        "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
        "vocab_size": 250002, "max_position_embeddings": 8194, "matryoshka_dimensions": [32, 64, 128, 256, 512, 768, 1024],
    }  # fmt: skip
    family, architecture = find_family(published)
    config = family.config_from_hf(published)
    assert (family.name, architecture) == ("jina", "XLMRobertaModel")
    assert config.adapters == tuple(TASKS)
    assert (config.hidden_size, config.vocab_size, config.max_length) == (1024, 250002, 8194)
    assert (config.adapter_rank, config.adapter_scale) == (4, 0.25)
    assert config.rotary.theta == 20000.0
    assert config.activation_bytes_per_token > 0


def test_positions_tell_it_from_xlm_roberta() -> None:
    assert find_family(_config(architectures=...))[0].name == "jina"
    for other in (..., None, "absolute", "alibi"):
        family, _ = find_family(_config(position_embedding_type=other))
        assert family.name == "roberta"
    with pytest.raises(ConfigError, match="position_embedding_type"):
        family.config_from_hf(_config(position_embedding_type="alibi"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "silu"}, "hidden_act"),
        ({"truncate_dim": 12}, "truncate_dim"),
        ({"use_reg_tokens": True}, "use_reg_tokens"),
        ({"num_attention_heads": 7}, "num_attention_heads"),
        ({"num_attention_heads": 4}, "rotary"),
        ({"rotary_emb_base": "20000"}, "rotary_emb_base"),
        ({"rotary_scaling": 2.0}, "rotary_scaling"),
        ({"lora_adaptations": "text-matching"}, "lora_adaptations"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"lora_alpha": None, "is_decoder": True}, "is_decoder"),
    ],
)
def test_what_is_not_understood_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        FAMILY.config_from_hf(_config(**changes))
