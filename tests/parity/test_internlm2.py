"""InternLM2 against its description in plain numpy, float64, a text at a time (transformers has no such class)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxpool.batch import Inputs, unfold
from jaxpool.converters.export import write_safetensors
from jaxpool.converters.rules import to_checkpoint
from jaxpool.loading import family_table, load_stored
from jaxpool.models import find_family
from jaxpool.models.family import Output
from jaxpool.models.internlm2 import FAMILY
from jaxpool.params import flatten, unstack_layers
from jaxpool.placement import load_to_mesh
from jaxpool.recipe import read_recipe
from jaxpool.sharding import replica_meshes

VOCAB = 90
# Three queries share a key; sizes share no factor with a vector unit's. And what else the published files hold.
CONFIG: dict[str, Any] = {
    "architectures": ["InternLM2ForRewardModel"],
    "attn_implementation": "eager",
    "auto_map": {"AutoModel": "modeling_internlm2.InternLM2ForRewardModel"},
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 36,
    "initializer_range": 0.02,
    "intermediate_size": 50,
    "max_position_embeddings": 48,
    "model_type": "internlm2",
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "reward_token_id": 89,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 1000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "vocab_size": VOCAB,
}

# name -> (changes of the config, dtype of the stored weights)
MODELS: dict[str, tuple[dict[str, Any], Any]] = {
    "gqa": ({}, np.float32),
    "biases": ({"bias": True}, np.float32),
    "biases-by-default": ({"bias": None}, np.float32),
    "bf16": ({"bias": True}, ml_dtypes.bfloat16),
    "every-query-its-key": ({"num_key_value_heads": None}, np.float32),
    "one-key": ({"num_key_value_heads": 1, "num_attention_heads": 9, "num_hidden_layers": 1}, np.float32),
    "linear": ({"rope_scaling": {"type": "linear", "factor": 2.5}}, np.float32),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 3.0}, "max_position_embeddings": 16}, np.float32),
    "causal-lm": ({"architectures": ["InternLM2ForCausalLM"], "rms_norm_eps": 1e-3}, np.float32),
    "bare": ({"architectures": ["InternLM2Model"]}, np.float32),
}


def weights(config: Mapping[str, Any], dtype: Any) -> dict[str, np.ndarray]:
    """A random state dict, with the names and shapes of the published ones."""
    width, mlp, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"] or heads
    fused = (heads + 2 * kv_heads) * (width // heads)
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (config["vocab_size"], width),
        "norm.weight": (width,),
    }
    for i in range(config["num_hidden_layers"]):
        own = {
            "attention.wqkv.weight": (fused, width),
            "attention.wo.weight": (width, width),
            "attention_norm.weight": (width,),
            "ffn_norm.weight": (width,),
            "feed_forward.w1.weight": (mlp, width),
            "feed_forward.w3.weight": (mlp, width),
            "feed_forward.w2.weight": (width, mlp),
        }
        if config["bias"] is not False:
            own |= {"attention.wqkv.bias": (fused,), "attention.wo.bias": (width,)}
        shapes |= {f"layers.{i}.{key}": shape for key, shape in own.items()}
    kind = config["architectures"][0]
    if kind != "InternLM2Model":
        shapes = {f"model.{key}": shape for key, shape in shapes.items()}
        shapes |= {"InternLM2ForCausalLM": {"output.weight": (VOCAB, width)},
                   "InternLM2ForRewardModel": {"v_head.weight": (1, width)}}[kind]  # fmt: skip
    rng = np.random.default_rng(0)
    return {
        key: (0.2 * rng.standard_normal(shape) + key.endswith("norm.weight")).astype(dtype)
        for key, shape in shapes.items()
    }


def write(directory: Path, changes: Mapping[str, Any], dtype: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    config = {**CONFIG, **changes}
    state = weights(config, dtype)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    write_safetensors(directory, "model", state.items())
    return config, state


# The description, in numpy


def frequencies(config: Mapping[str, Any], size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles of one text's positions, [length, size/2]: linear divides positions, dynamic raises the base."""
    scaling = config["rope_scaling"] or {"type": None}
    base, position = config["rope_theta"], np.arange(length, dtype=np.float64)
    trained = config["max_position_embeddings"]
    if scaling["type"] == "linear":
        position = position / scaling["factor"]
    if scaling["type"] == "dynamic" and length > trained:
        factor = scaling["factor"]
        base = base * ((factor * length / trained) - (factor - 1)) ** (size / (size - 2))
    angles = np.outer(position, 1.0 / base ** (np.arange(0, size, 2) / size))
    angles = np.concatenate([angles, angles], -1)
    return np.cos(angles), np.sin(angles)


def rotate_half(x: np.ndarray) -> np.ndarray:
    first, second = np.split(x, 2, -1)
    return np.concatenate([-second, first], -1)


def reference(config: Mapping[str, Any], state: Mapping[str, np.ndarray], ids: np.ndarray) -> dict[str, np.ndarray]:
    """One text's hidden states, embeddings, and residual streams behind each attention and each layer."""
    w = {key.removeprefix("model."): np.asarray(value, np.float64) for key, value in state.items()}
    heads = config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"] or heads
    groups, size, length = heads // kv_heads, config["hidden_size"] // heads, len(ids)
    cos, sin = frequencies(config, size, length)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return w[name] * x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"])

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def attention(x: np.ndarray, name: str) -> np.ndarray:
        fused = linear(x, f"{name}.wqkv").reshape(length, kv_heads, groups + 2, size)
        mixed = np.zeros((length, heads, size))
        for head in range(heads):
            mine = head // groups
            q, k, v = fused[:, mine, head % groups], fused[:, mine, groups], fused[:, mine, groups + 1]
            q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
            scores = q @ k.T / np.sqrt(size)
            scores[np.triu_indices(length, 1)] = -np.inf
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = scores / scores.sum(-1, keepdims=True) @ v
        return linear(mixed.reshape(length, -1), f"{name}.wo")

    def mlp(x: np.ndarray, name: str) -> np.ndarray:
        gate = linear(x, f"{name}.w1")
        return linear(gate / (1 + np.exp(-gate)) * linear(x, f"{name}.w3"), f"{name}.w2")

    x = embeddings = w["tok_embeddings.weight"][ids]
    attended, layers = [], []
    for i in range(config["num_hidden_layers"]):
        x = x + attention(norm(x, f"layers.{i}.attention_norm.weight"), f"layers.{i}.attention")
        attended.append(x)
        x = x + mlp(norm(x, f"layers.{i}.ffn_norm.weight"), f"layers.{i}.feed_forward")
        layers.append(x)
    streams = {"attention": np.stack(attended), "layer": np.stack(layers)}
    return {"hidden": norm(x, "norm.weight"), "embeddings": embeddings} | streams


# Ours


def load(directory: Path) -> SimpleNamespace:
    recipe = read_recipe(directory)
    assert recipe.family is FAMILY
    params = load_to_mesh(recipe, replica_meshes(None, None)[0], np.float32)["backbone"]
    return SimpleNamespace(config=recipe.config, params=params)


@partial(jax.jit, static_argnums=0)
def _compiled(config: Any, params: Any, inputs: Inputs) -> Output:
    return FAMILY.run(params, unfold(inputs), config, capture=FAMILY.captures)


def run(ours: SimpleNamespace, rows: Sequence[Sequence[np.ndarray]], params: Any = None) -> dict[str, np.ndarray]:
    """Hidden states and all captures of 3 rows of up to 4 packed texts."""
    inputs = Inputs.of_shape(3, 64, 4, partial(np.zeros, dtype=np.int32))
    for r, row in enumerate(rows):
        inputs.ids[r, : sum(map(len, row))] = np.concatenate(row)
        inputs.lengths[r, : len(row)] = [len(text) for text in row]
    output = _compiled(ours.config, ours.params if params is None else params, inputs)
    assert set(output.captured) == {"embeddings", "attention", "layer"}
    return {"hidden": np.asarray(output.hidden)} | {k: np.asarray(v) for k, v in output.captured.items()}


def packed(seed: int = 0) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [[rng.integers(0, VOCAB, n) for n in lengths] for lengths in ((5, 1, 30), (48,), (1, 2, 17, 16))]


def compare(output: Mapping[str, np.ndarray], config: Any, state: Any, rows: list[list[np.ndarray]]) -> None:
    """No entry further apart than 1e-5 of the largest in its layer (or of 1, where all are smaller)."""
    for r, row in enumerate(rows):
        start = 0
        for text in row:
            for name, expected in reference(config, state, text).items():
                span = output[name][..., r, start : start + len(text), :]
                assert span.shape == expected.shape
                scale = np.maximum(1, np.abs(expected).max((-1, -2), keepdims=True))
                np.testing.assert_allclose(span / scale, expected / scale, rtol=0, atol=1e-5, err_msg=name)
            start += len(text)


@pytest.mark.parametrize("name", MODELS)
def test_every_intermediate_of_packed_texts(name: str, tmp_path: Path) -> None:
    changes, dtype = MODELS[name]
    config, state = write(tmp_path, changes, dtype)
    rows = packed()
    compare(run(load(tmp_path), rows), config, state, rows)


def test_unstacked_layers(tmp_path: Path) -> None:
    config, state = write(tmp_path, {"bias": True}, np.float32)
    ours, rows = load(tmp_path), packed(1)
    compare(run(ours, rows, unstack_layers(ours.params)), config, state, rows)


def test_what_a_query_sees(tmp_path: Path) -> None:
    """The reference itself: a later token changes nothing before it, an earlier one does."""
    config, state = write(tmp_path, {}, np.float32)
    text = packed()[1][0]
    whole, part = reference(config, state, text), reference(config, state, text[:20])
    np.testing.assert_allclose(whole["hidden"][:20], part["hidden"], atol=1e-12)
    other = reference(config, state, np.roll(text, 1))
    assert np.abs(whole["hidden"][-1] - other["hidden"][-1]).max() > 1e-3


def test_converts_back(tmp_path: Path) -> None:
    _, state = write(tmp_path, {"architectures": ["InternLM2Model"], "bias": True}, ml_dtypes.bfloat16)
    recipe = read_recipe(tmp_path)
    restored = dict(to_checkpoint(flatten(load_stored(recipe)["backbone"]), family_table(recipe)))
    assert set(restored) == set(state)
    for key, tensor in state.items():
        assert np.array_equal(restored[key], tensor), key


def test_recipe(tmp_path: Path) -> None:
    write(tmp_path, MODELS["dynamic"][0], np.float32)
    recipe = read_recipe(tmp_path)
    assert recipe.family.name == "internlm2"
    assert recipe.pooling == ("lasttoken",)
    assert recipe.max_length == 48  # vLLM's rule: positions times factor


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn' is not known to InternLM2"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"num_attention_heads": 12}, "even"),
        ({"sliding_window": 4}, "sliding_window"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_what_is_not_understood_is_refused(changes: dict[str, Any], message: str) -> None:
    values = {**CONFIG, **changes}
    family, _ = find_family(values)
    with pytest.raises(ValueError, match=message):
        family.config_from_hf(values)


def test_a_missing_bias_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"bias": False}, np.float32)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "bias": True}))
    with pytest.raises(ValueError, match=r"layers\.0\.attention\.wqkv\.bias"):
        load(tmp_path)
