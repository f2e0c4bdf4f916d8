"""Llama and its kin against transformers' torch models, intermediate by intermediate, in float32."""

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
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import AutoModel, PreTrainedModel

from jaxpool import LLM
from jaxpool.batch import Inputs, unfold
from jaxpool.converters.rules import to_checkpoint
from jaxpool.loading import family_table, load_stored
from jaxpool.models import find_family
from jaxpool.models.family import Family, Output
from jaxpool.models.hf_config import ConfigError
from jaxpool.params import flatten, unstack_layers
from jaxpool.placement import load_to_mesh
from jaxpool.recipe import read_recipe
from jaxpool.sharding import replica_meshes
from tests.parity.checkpoints import TEXTS, assert_close, edit_json, read_json, write_sentence_transformer
from tests.parity.decoder_tokenizers import write_decoder_tokenizer

pytestmark = pytest.mark.torch

VOCAB = 90
POSITIONS = 48
# Sizes that share no factor with a vector unit's; three queries share a key, and heads are not width / heads.
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 36,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NARROW = {"head_dim": 6}  # Qwen2's heads are width / heads
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32, "rope_theta": 500.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24, "rope_theta": 300.0}
WINDOWED = {"use_sliding_window": True, "sliding_window": 7}

# name -> (architecture without "Model" or "ForCausalLM", config)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-one-layer": ("Llama", {"num_hidden_layers": 1, "num_key_value_heads": 6, "rms_norm_eps": 1e-3}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "llama-one-kv-head": ("Llama", {"num_key_value_heads": 1, "head_dim": None}),
    "llama-theta": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 100.0}}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "mistral-all": ("Mistral", {"sliding_window": None}),
    "mistral-window-of-one": ("Mistral", {"sliding_window": 1}),
    "mistral-bidirectional": ("Mistral", {"sliding_window": None, "is_causal": False}),
    "qwen2": ("Qwen2", NARROW),
    "qwen2-windows-above": ("Qwen2", NARROW | WINDOWED | {"max_window_layers": 1}),
    "qwen2-windows-everywhere": ("Qwen2", NARROW | WINDOWED | {"max_window_layers": 0}),
    "qwen2-windows-nowhere": ("Qwen2", NARROW | WINDOWED | {"max_window_layers": 28}),
    "qwen2-bidirectional": ("Qwen2", NARROW | {"is_causal": False}),
    "qwen2-bidirectional-windows": ("Qwen2", NARROW | WINDOWED | {"max_window_layers": 1, "is_causal": False}),
    "qwen2-yarn": ("Qwen2", NARROW | {"rope_parameters": YARN | {"truncate": False, "beta_fast": 8.0, "beta_slow": 2.0}}),
    "qwen3": ("Qwen3", {}),
    "qwen3-biases": ("Qwen3", {"attention_bias": True}),
    "qwen3-windows-by-layer": ("Qwen3", WINDOWED | {"num_hidden_layers": 5, "layer_types": [
        "sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"]}),
    "qwen3-yarn": ("Qwen3", {"rope_parameters": YARN | {"mscale": 1.3, "mscale_all_dim": 0.7}}),
    "qwen3-yarn-attention-factor": ("Qwen3", {"rope_parameters": YARN | {"attention_factor": 1.25}}),
    "gemma": ("Gemma", {}),
    "gemma-biases": ("Gemma", {"attention_bias": True, "hidden_act": "gelu"}),
    "gemma2": ("Gemma2", {"sliding_window": 7, "query_pre_attn_scalar": 21, "attn_logit_softcapping": 2.0}),
    "gemma2-no-cap": ("Gemma2", {"sliding_window": 7, "attn_logit_softcapping": None, "num_hidden_layers": 4}),
    "gemma3": ("Gemma3Text", {"sliding_window": 7, "num_hidden_layers": 7, "query_pre_attn_scalar": 21}),
    "gemma3-every-second": ("Gemma3Text", {"sliding_window": 7, "sliding_window_pattern": 2, "attention_bias": True}),
    "gemma3-linear": ("Gemma3Text", {"sliding_window": 7, "layer_types": ["full_attention", "sliding_attention"],
        "num_hidden_layers": 2, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}}),
    "gemma3-bidirectional": ("Gemma3Text", {"sliding_window": 8, "num_hidden_layers": 7,
                                            "use_bidirectional_attention": True}),
    "gemma3-bidirectional-odd": ("Gemma3Text", {"sliding_window": 5, "use_bidirectional_attention": True}),
}  # fmt: skip


def build(architecture: str, config: Mapping[str, Any], *, causal_lm: bool = False) -> PreTrainedModel:
    """A random model; `is_causal` goes into its config, as gte-Qwen2's config.json has it."""
    kind = architecture.removesuffix("Text")
    config_class = getattr(transformers, f"{architecture}Config")
    values = {key: value for key, value in {**SIZES, **config}.items() if key != "is_causal"}
    made = config_class(**values)
    if "is_causal" in config:
        made.is_causal = config["is_causal"]
    name = f"{kind}ForCausalLM" if causal_lm else f"{architecture}Model"
    model = getattr(transformers, name)(made)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(0, 0.15, generator=generator)
            if "norm" in key and not architecture.startswith("Gemma"):
                parameter += 1
    return model.eval()


def load(directory: Path) -> SimpleNamespace:
    """jaxpool's side: the family, its config and the params in float32."""
    recipe = read_recipe(directory)
    params = load_to_mesh(recipe, replica_meshes(None, None)[0], np.float32)["backbone"]
    return SimpleNamespace(family=recipe.family, config=recipe.config, params=params)


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(family: Family, config: Any, params: Any, inputs: Inputs) -> Output:
    return family.run(params, unfold(inputs), config, capture=family.captures)


def run(ours: SimpleNamespace, rows: Sequence[Sequence[np.ndarray]], params: Any = None) -> dict[str, np.ndarray]:
    """Hidden states and all captures of 4 rows of up to 4 packed sequences."""
    inputs = Inputs.of_shape(4, 64, 4, partial(np.zeros, dtype=np.int32))
    for r, row in enumerate(rows):
        inputs.ids[r, : sum(map(len, row))] = np.concatenate(row)
        inputs.lengths[r, : len(row)] = [len(sequence) for sequence in row]
    output = _compiled(ours.family, ours.config, ours.params if params is None else params, inputs)
    assert set(output.captured) == {"embeddings", "attention", "layer"}
    return {"hidden": np.asarray(output.hidden)} | {k: np.asarray(v) for k, v in output.captured.items()}


def reference(model: PreTrainedModel, sequence: np.ndarray) -> dict[str, np.ndarray]:
    """The same intermediates of one text from torch in float32."""
    base = getattr(model, "model", model)
    behind = "pre_feedforward_layernorm" if "gemma2" in base.config.model_type or "gemma3" in base.config.model_type \
        else "post_attention_layernorm"  # fmt: skip
    attended: list[torch.Tensor] = []
    layers: list[torch.Tensor] = []
    embedded: list[torch.Tensor] = []
    first = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731
    hooks = [base.embed_tokens.register_forward_hook(lambda _m, _i, out: embedded.append(out))]
    for layer in base.layers:
        # The residual stream behind the attention is what the MLP's norm reads.
        hooks.append(getattr(layer, behind).register_forward_pre_hook(lambda _m, args: attended.append(args[0])))
        hooks.append(layer.register_forward_hook(lambda _m, _i, out: layers.append(first(out))))
    with torch.inference_mode():
        output = base(input_ids=torch.from_numpy(sequence)[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    stacks = {"attention": torch.stack(attended), "layer": torch.stack(layers)}
    return {k: v.numpy() for k, v in ({"hidden": output.last_hidden_state, "embeddings": embedded[0]} | stacks).items()}


def compare(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], row: int, start: int = 0) -> None:
    """One sequence: no entry further apart than 1e-5 of the largest in its layer (or of 1, where all are smaller)."""
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        span = ours[name][..., row, start : start + expected.shape[-2], :]
        expected = expected[..., 0, :, :]
        scale = np.maximum(1, np.abs(expected).max((-1, -2), keepdims=True))
        assert_close(span / scale, expected / scale)


def sequences(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, length) for length in lengths]


def reload(directory: Path, **how: Any) -> PreTrainedModel:
    """torch's side, from the files; eager attention materialises every mask."""
    return AutoModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager", **how).eval()


def check(directory: Path, model: PreTrainedModel, lengths: Sequence[int] = (1, 7, 23, 40)) -> SimpleNamespace:
    ours, texts = load(directory), sequences(lengths)
    output = run(ours, [[text] for text in texts])
    for row, text in enumerate(texts):
        compare(output, reference(model, text), row)
    return ours


@pytest.mark.parametrize("name", MODELS)
def test_every_intermediate_is_torchs(name: str, tmp_path: Path) -> None:
    architecture, config = MODELS[name]
    build(architecture, config).save_pretrained(tmp_path)
    check(tmp_path, reload(tmp_path))


def kinds(ours: SimpleNamespace) -> list[tuple[int, int] | None]:
    return [kind.window for kind in ours.config.pattern]


def test_patterns_are_the_shortest(tmp_path: Path) -> None:
    expected: dict[str, list[Any]] = {
        "mistral": [(4, 0)],
        "mistral-all": [None],
        "qwen2-windows-above": [None, (6, 0), (6, 0)],
        "qwen2-windows-everywhere": [(6, 0)],
        "qwen2-windows-nowhere": [None],
        "qwen2-bidirectional-windows": [None, (7, 7), (7, 7)],
        "qwen3-windows-by-layer": [(6, 0), None],
        "gemma2": [(6, 0), None],
        "gemma3": [*[(6, 0)] * 5, None],
        "gemma3-bidirectional": [*[(4, 4)] * 5, None],
        "gemma3-bidirectional-odd": [(2, 2)],
    }
    for name, windows in expected.items():
        architecture, config = MODELS[name]
        build(architecture, config).config.save_pretrained(tmp_path)
        values = read_json(tmp_path / "config.json") | {"architectures": [f"{architecture}Model"]}
        family, _ = find_family(values)
        assert [kind.window for kind in family.config_from_hf(values).pattern] == windows, name


# What differs between layers or from one family to the other, where packing and unstacking could go wrong.
@pytest.fixture(scope="module", params=["qwen3-windows-by-layer", "gemma2", "gemma3-bidirectional", "mistral"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PreTrainedModel]:
    directory = tmp_path_factory.mktemp("decoder")
    architecture, config = MODELS[request.param]
    build(architecture, config).save_pretrained(directory)
    return load(directory), reload(directory)


def compare_packed(ours: Any, model: PreTrainedModel, rows: Sequence[Sequence[np.ndarray]]) -> None:
    output = run(ours, rows)
    for r, row in enumerate(rows):
        start = 0
        for sequence in row:
            compare(output, reference(model, sequence), r, start)
            start += len(sequence)


ROWS = ((5, 1, 30), (40,), (1, 2, 17, 9))


def test_packed_sequences_are_each_as_alone(pair: tuple[Any, PreTrainedModel]) -> None:
    compare_packed(*pair, [sequences(lengths, seed) for seed, lengths in enumerate(ROWS)])


def test_unstacked_layers_compute_the_same(pair: tuple[Any, PreTrainedModel]) -> None:
    ours, _ = pair
    rows = [sequences(lengths, seed) for seed, lengths in enumerate(ROWS)]
    stacked, unstacked = run(ours, rows), run(ours, rows, unstack_layers(ours.params))
    for name in stacked:
        assert np.isfinite(stacked[name]).all()
        scale = max(1, np.abs(stacked[name]).max())
        assert_close(stacked[name] / scale, unstacked[name] / scale, 5e-6)


# Rotary embeddings in the spellings of transformers 4


def old_spelling(directory: Path) -> None:
    """Rewrites config.json to what transformers 4 saved."""
    file = directory / "config.json"
    new = read_json(file)["rope_parameters"]
    if "full_attention" in new:
        local, new = new["sliding_attention"], new["full_attention"]
        edit_json(file, rope_local_base_freq=local["rope_theta"])
    rest = {key: value for key, value in new.items() if key not in ("rope_theta", "rope_type")}
    kind = new["rope_type"]
    # "type" in the first of them, before there was a Gemma 3.
    name = "type" if kind == "linear" and read_json(file)["model_type"] == "llama" else "rope_type"
    scaling = {name: kind, **rest} if kind != "default" else None
    edit_json(file, rope_parameters=..., rope_theta=new["rope_theta"], rope_scaling=scaling, torch_dtype="float32")


@pytest.mark.parametrize(
    "name", ["llama-theta", "llama-linear", "llama-llama3", "qwen2-yarn", "gemma3", "gemma3-linear", "gemma2"]
)
def test_old_spelling(name: str, tmp_path: Path) -> None:
    architecture, config = MODELS[name]
    build(architecture, config).save_pretrained(tmp_path)
    new = load(tmp_path).config
    old_spelling(tmp_path)
    assert "rope_parameters" not in read_json(tmp_path / "config.json")
    assert check(tmp_path, reload(tmp_path)).config == new


def test_yarn_without_its_length(tmp_path: Path) -> None:
    settings = {key: value for key, value in YARN.items() if key != "original_max_position_embeddings"}
    build("Llama", {}).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", rope_parameters=settings)
    assert check(tmp_path, reload(tmp_path)).config.max_length == 4 * POSITIONS


@pytest.mark.parametrize("old", [False, True])
def test_dynamic(old: bool, tmp_path: Path) -> None:
    """Each text's frequencies follow its own length; transformers' follow the longest it has seen, so each is alone."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
    build("Llama", {"max_position_embeddings": 16, "rope_parameters": rope}).save_pretrained(tmp_path)
    if old:
        old_spelling(tmp_path)
    ours = load(tmp_path)
    assert ours.config.max_length == 32
    rows = [sequences(lengths, seed) for seed, lengths in enumerate([(9, 30, 16), (32, 17), (31,)])]
    output = run(ours, rows)
    for r, row in enumerate(rows):
        start = 0
        for sequence in row:
            compare(output, reference(reload(tmp_path), sequence), r, start)
            start += len(sequence)


@pytest.mark.parametrize(
    ("name", "length"),
    [("llama", 48), ("llama-linear", 120), ("llama-llama3", 48), ("llama-yarn", 96), ("gemma3-linear", 48)],
)
def test_max_length(name: str, length: int, tmp_path: Path) -> None:
    architecture, config = MODELS[name]
    build(architecture, config).save_pretrained(tmp_path)
    assert read_recipe(tmp_path).max_length == length


# Checkpoints


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text"])
def test_causal_lm(architecture: str, tied: bool, tmp_path: Path) -> None:
    config = (NARROW if architecture == "Qwen2" else {}) | {"tie_word_embeddings": tied, "num_hidden_layers": 2}
    build(architecture, config, causal_lm=True).save_pretrained(tmp_path)
    assert read_json(tmp_path / "config.json")["architectures"][0].endswith("ForCausalLM")
    check(tmp_path, reload(tmp_path))


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_bf16_in_several_files(name: str, tmp_path: Path) -> None:
    architecture, config = MODELS[name]
    build(architecture, config, causal_lm=True).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="8KB")
    index = read_json(tmp_path / "model.safetensors.index.json")
    assert len(set(index["weight_map"].values())) > 3
    check(tmp_path, reload(tmp_path))


def test_stored_frequencies_are_left_out(tmp_path: Path) -> None:
    model = build("Llama", {})
    state = dict(model.state_dict()) | {f"layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(5) for i in range(3)}
    model.config.save_pretrained(tmp_path)
    torch.save({f"model.{key}": value for key, value in state.items()}, tmp_path / "pytorch_model.bin")
    edit_json(tmp_path / "config.json", architectures=["LlamaForCausalLM"])
    ours, (text,) = load(tmp_path), sequences((20,))
    compare(run(ours, [[text]]), reference(model, text), 0)


@pytest.mark.parametrize("name", ["llama-biases", "qwen3", "gemma3"])
def test_converts_back(name: str, tmp_path: Path) -> None:
    architecture, config = MODELS[name]
    model = build(architecture, config)
    model.save_pretrained(tmp_path)
    recipe = read_recipe(tmp_path)
    state = dict(to_checkpoint(flatten(load_stored(recipe)["backbone"]), family_table(recipe)))
    assert set(state) == set(model.state_dict())
    for key, tensor in model.state_dict().items():
        assert np.array_equal(state[key], tensor.numpy()), key


def test_bf16_compute(tmp_path: Path) -> None:
    """Gemma rounds its embeddings' factor to the compute dtype; the whole stays near torch's own bf16."""
    build("Gemma2", {}).save_pretrained(tmp_path)
    recipe = read_recipe(tmp_path)
    params = load_to_mesh(recipe, replica_meshes(None, None)[0], jax.numpy.bfloat16)["backbone"]
    output = run(SimpleNamespace(family=recipe.family, config=recipe.config, params=params), [sequences((20,))])
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    with torch.inference_mode():
        embedded = model.embed_tokens(torch.from_numpy(sequences((20,))[0])).float().numpy()
    assert np.array_equal(output["embeddings"][0, :20].astype(np.float32), embedded)
    exact = reference(reload(tmp_path), sequences((20,))[0])["hidden"][0]
    assert np.abs(output["hidden"][0, :20].astype(np.float32) - exact).max() < 0.1


# config.json


@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3Text"])
def test_defaults_load(architecture: str) -> None:
    values = getattr(transformers, f"{architecture}Config")().to_dict() | {"architectures": None}
    family, _ = find_family(values)
    config = family.config_from_hf(values)
    made = getattr(transformers, f"{architecture}Config")()
    assert config.head_size == (getattr(made, "head_dim", None) or made.hidden_size // made.num_attention_heads)
    assert config.kv_heads == made.num_key_value_heads
    assert config.max_length == made.max_position_embeddings
    windows = {kind.window for kind in config.pattern}
    sees = {"Mistral": {(4095, 0)}, "Gemma2": {(4095, 0), None}, "Gemma3Text": {(4095, 0), None}}
    assert windows == sees.get(architecture, {None})
    theta = {rotary.theta for _, rotary in config.pattern}
    assert theta == ({10_000.0, 1_000_000.0} if architecture == "Gemma3Text" else {10_000.0})


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("Llama", {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ("Llama", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ("Llama", {"rope_parameters": {"rope_type": "default", "mrope_section": [1]}}, "mrope_section"),
        ("Llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("Llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("Llama", {"sliding_window": 4}, "sliding_window"),
        ("Llama", {"num_key_value_heads": 4}, "num_key_value_heads"),
        ("Llama", {"head_dim": 9}, "even"),
        ("Llama", {"hidden_act": "mish"}, "hidden_act"),
        ("Llama", {"model_type": "granite"}, "granite"),
        ("Llama", {"model_type": None}, "model_type"),
        ("Mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("Qwen2", {"use_mrope": True}, "use_mrope"),
        ("Qwen3", {"layer_types": ["sliding_attention"] * 3}, "sliding_attention"),
        ("Qwen3", {"layer_types": ["full_attention"] * 2}, "names 2 layers of 3"),
        ("Gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("Gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("Gemma2", {"sliding_window": 8, "sliding_window_size": 7}, "sliding_window_size"),
        ("Gemma3Text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("Gemma3Text", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        ("Gemma3Text", {"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_scaling"),
    ],
)
def test_what_is_not_understood_is_refused(architecture: str, changes: dict[str, Any], message: str) -> None:
    config = getattr(transformers, f"{architecture}Config")(**SIZES)
    values = config.to_dict() | {"architectures": [f"{architecture}Model"]} | changes
    family, _ = find_family(values)
    with pytest.raises((ConfigError, ValueError), match=message):
        family.config_from_hf(values)


# Whole directories


def write_model(directory: Path, name: str) -> Path:
    """A plain transformers directory with a tokenizer."""
    architecture, config = MODELS[name]
    tokenizer = write_decoder_tokenizer(directory, architecture.removesuffix("Text").rstrip("23"))
    build(architecture, {**config, "vocab_size": tokenizer.get_vocab_size()}).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("name", ["qwen3", "mistral", "qwen2-bidirectional", "gemma3-bidirectional"])
def test_sentence_transformer(name: str, tmp_path: Path) -> None:
    backbone = write_model(tmp_path / "backbone", name)
    directory = write_sentence_transformer(
        tmp_path / "whole",
        backbone,
        [Pooling(36, "lasttoken"), Normalize()],
        prompts={"query": "Instruct: find it\nQuery: ", "document": ""},
    )
    texts = [text for text in TEXTS if text]
    theirs = SentenceTransformer(str(directory), device="cpu")
    assert theirs.tokenizer.padding_side == "left"
    with LLM(directory, dtype="float32", data_parallel_size=1, max_num_batched_tokens=POSITIONS) as llm:
        for prompt in (None, "query"):
            vectors = llm.embed_array(texts, prompt_name=prompt)
            assert_close(vectors, theirs.encode(texts, prompt_name=prompt))
            assert_close(np.linalg.norm(vectors, axis=1), np.ones(len(texts)))


def test_plain_directory_pools_the_last_token(tmp_path: Path) -> None:
    recipe = read_recipe(write_model(tmp_path, "qwen3"))
    assert recipe.pooling == ("lasttoken",)
    assert recipe.normalised
