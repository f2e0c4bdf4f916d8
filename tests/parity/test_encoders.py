"""RoBERTa and its kin, DistilBERT and ModernBERT against transformers' torch models, and whole directories of each."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import (
    AutoTokenizer,
    CamembertConfig,
    CamembertForMaskedLM,
    CamembertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
)

from jaxpool.converters.rules import to_checkpoint
from jaxpool.models import find_family
from jaxpool.models.hf_config import ConfigError
from jaxpool.params import flatten, unstack_layers
from jaxpool.recipe import read_recipe
from jaxpool.tokens import load_tokenizer
from tests.nasty import NASTY
from tests.parity.checkpoints import (
    HIDDEN,
    SIZES,
    TEXTS,
    assert_close,
    edit_json,
    randomise,
    read_json,
    write_sentence_transformer,
)
from tests.parity.encoder_tokenizers import write_encoder_tokenizer
from tests.parity.test_backbones import VOCAB, _compare, _load, _run, _sequences
from tests.parity.test_sentence_transformers import assert_same_vectors
from tests.parity.test_tokenizer import TELLING, assert_same_ids

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("compiled_programs")]

LENGTH = 16
DISTILBERT_SIZES = {"dim": HIDDEN, "n_heads": 3, "hidden_dim": 50, "n_layers": 3, "max_position_embeddings": 48}
# Full attention in layers 0, 3 and 6 of 7: behind layer 0 two whole periods of three.
MODERNBERT_SIZES = SIZES | {"num_hidden_layers": 7, "local_attention": 8, "pad_token_id": 0}
FULL, SLIDING = "full_attention", "sliding_attention"
# As config.json was written before transformers 5, with what its first release copied from BERT.
OLD_MODERNBERT = {
    "layer_types": ...,
    "rope_parameters": ...,
    "global_attn_every_n_layers": 2,
    "global_rope_theta": 700.0,
    "local_rope_theta": 90.0,
    "layer_norm_eps": 1e-5,
    "position_embedding_type": "absolute",
    "reference_compile": True,
    "repad_logits_with_grad": False,
}
ROPE = {
    FULL: {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 12},
    SLIDING: {"rope_type": "linear", "rope_theta": 60.0, "factor": 2.0},
}

Size = dict[str, Any]

# name -> (class, sizes, edits of the config.json that both sides read)
CHECKPOINTS: dict[str, tuple[type[PreTrainedModel], Size, Size]] = {
    "roberta": (RobertaModel, {"num_hidden_layers": 4}, {}),
    "roberta-mlm-no-pooler": (RobertaForMaskedLM, {"type_vocab_size": 1, "layer_norm_eps": 1e-5}, {}),
    "roberta-other-padding": (RobertaModel, {"pad_token_id": 4, "hidden_act": "relu"}, {}),
    "roberta-padding-0": (RobertaModel, {"pad_token_id": 0}, {}),
    "xlm-roberta": (XLMRobertaModel, {"type_vocab_size": 1}, {}),
    "xlm-roberta-mlm": (XLMRobertaForMaskedLM, {}, {"output_past": True}),
    "camembert": (CamembertModel, {}, {}),
    "camembert-mlm": (CamembertForMaskedLM, {"hidden_act": "gelu_new"}, {}),
    "distilbert": (DistilBertModel, {}, {}),
    "distilbert-sinusoidal": (DistilBertModel, {"sinusoidal_pos_embds": True, "activation": "relu"}, {}),
    "distilbert-mlm": (DistilBertForMaskedLM, {}, {"tie_weights_": True}),
    "modernbert": (ModernBertModel, {}, {}),
    "modernbert-biases": (
        ModernBertModel, {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "norm_eps": 1e-3}, {}
    ),
    "modernbert-attention-bias": (ModernBertModel, {"attention_bias": True, "local_attention": 9}, {}),
    "modernbert-mlm-norm-bias": (ModernBertForMaskedLM, {"norm_bias": True, "hidden_activation": "silu"}, {}),
    "modernbert-remainder": (ModernBertModel, {"num_hidden_layers": 6}, {}),
    "modernbert-one-layer": (ModernBertModel, {"num_hidden_layers": 1}, {}),
    "modernbert-two-layers": (ModernBertModel, {"num_hidden_layers": 2}, {}),
    "modernbert-all-sliding": (ModernBertModel, {"num_hidden_layers": 4, "layer_types": [SLIDING] * 4}, {}),
    "modernbert-no-period": (ModernBertModel, {"num_hidden_layers": 4, "layer_types": [FULL, SLIDING, SLIDING, SLIDING]}, {}),
    "modernbert-irregular": (
        ModernBertModel, {"num_hidden_layers": 5, "layer_types": [SLIDING, FULL, FULL, SLIDING, FULL]}, {}
    ),
    "modernbert-rope": (ModernBertModel, {"rope_parameters": ROPE}, {}),
    "modernbert-old": (ModernBertModel, {}, OLD_MODERNBERT),
    "modernbert-old-scaled": (
        ModernBertForMaskedLM, {}, OLD_MODERNBERT | {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}
    ),
    "modernbert-old-unscaled": (  # transformers passes over this spelling of the kind
        ModernBertModel, {}, OLD_MODERNBERT | {"rope_scaling": {"type": "linear", "factor": 2.5}}
    ),
}  # fmt: skip
BY_KIND: dict[str, Size] = {"distilbert": DISTILBERT_SIZES, "modernbert": MODERNBERT_SIZES}


def _build(
    directory: Path, name: str, *, dtype: torch.dtype = torch.float32, vocab_size: int = VOCAB
) -> PreTrainedModel:
    """Writes a random checkpoint; returns what transformers reads from the directory, in float64."""
    cls, sizes, edits = CHECKPOINTS[name]
    sizes = BY_KIND.get(cls.config_class.model_type, SIZES) | {"vocab_size": vocab_size} | sizes
    model = cls(cls.config_class(**sizes))
    randomise(model)
    if cls.config_class.model_type == "modernbert":
        # Its residual stream is not normed: of large weights torch's own float32 is no nearer than 1e-4.
        with torch.no_grad():
            for layer in (model.model if hasattr(model, "model") else model).layers:
                for kernel in (layer.attn.Wqkv, layer.attn.Wo, layer.mlp.Wi, layer.mlp.Wo):
                    kernel.weight *= 0.4
    model.to(dtype).save_pretrained(directory)
    edit_json(directory / "config.json", **edits)
    return cls.from_pretrained(directory, dtype=torch.float64).eval()


def _watched(base: PreTrainedModel) -> dict[str, list[tuple[torch.nn.Module, bool]]]:
    """What is captured: modules, and whether their output (or else their input) is it."""
    if base.config.model_type == "modernbert":
        return {
            "attention": [(layer.mlp_norm, False) for layer in base.layers],
            "layer": [(x, True) for x in base.layers],
        }
    if base.config.model_type == "distilbert":
        layers = base.transformer.layer
        return {"attention": [(layer.sa_layer_norm, True) for layer in layers], "layer": [(x, True) for x in layers]}
    layers = base.encoder.layer
    return {"attention": [(layer.attention.output, True) for layer in layers], "layer": [(x, True) for x in layers]}


def _reference(model: PreTrainedModel, sequences: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Hidden states and intermediates from torch in float64, of a batch padded to its longest."""
    base = getattr(model, model.base_model_prefix, model)
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), model.config.pad_token_id)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.from_numpy(sequence)
        mask[i, : len(sequence)] = 1
    seen: dict[str, list[torch.Tensor]] = defaultdict(list)

    def keep(name: str, after: bool) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, inputs: Any, output: Any) -> None:
            value = output if after else inputs
            seen[name].append(value[0] if isinstance(value, tuple) else value)

        return hook

    watched = {"embeddings": [(base.embeddings, True)]} | _watched(base)
    hooks = [
        module.register_forward_hook(keep(name, after)) for name, all_ in watched.items() for module, after in all_
    ]
    with torch.inference_mode():
        hidden = base(input_ids=ids, attention_mask=mask).last_hidden_state
        result = {"hidden": hidden, "embeddings": seen["embeddings"][0]}
        result |= {name: torch.stack(seen[name]) for name in ("attention", "layer")}
        if getattr(base, "pooler", None) is not None:
            result["pooler"] = torch.tanh(base.pooler.dense(hidden))
    for hook in hooks:
        hook.remove()
    return {name: value.numpy() for name, value in result.items()}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_intermediate_is_torchs(name: str, tmp_path: Path) -> None:
    model = _build(tmp_path, name)
    lengths = (1, 7, 23, 40)
    sequences = _sequences(lengths)
    ours = _run(_load(tmp_path), [[sequence] for sequence in sequences])
    _compare(ours, _reference(model, sequences), lengths)


@pytest.mark.parametrize("name", ["roberta", "distilbert-mlm", "modernbert-biases", "modernbert-old-scaled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_stored_in_half(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = _build(tmp_path, name, dtype=dtype)
    assert read_json(tmp_path / "config.json")["dtype"] == str(dtype).removeprefix("torch.")
    lengths = (3, 30)
    sequences = _sequences(lengths)
    _compare(_run(_load(tmp_path), [[s] for s in sequences]), _reference(model, sequences), lengths)


@pytest.fixture(scope="module", params=["roberta", "distilbert", "modernbert-biases", "modernbert-remainder"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, PreTrainedModel]:
    """A checkpoint on both sides."""
    directory = tmp_path_factory.mktemp(request.param)
    model = _build(directory, request.param)
    return _load(directory), model


def test_packed_sequences_are_each_as_alone(pair: tuple[Any, PreTrainedModel]) -> None:
    ours, model = pair
    rows = [_sequences((5, 1, 30), seed=1), _sequences((40,), seed=2), _sequences((1, 1, 2, 17, 9, 8), seed=3)]
    packed = _run(ours, rows)
    assert all(np.isfinite(values).all() for values in packed.values())
    for r, row in enumerate(rows):
        start = 0
        for sequence in row:
            for name, alone in _reference(model, [sequence]).items():
                assert_close(packed[name][..., r, start : start + len(sequence), :], alone[..., 0, :, :])
            start += len(sequence)


def test_unstacked_layers_compute_the_same(pair: tuple[Any, PreTrainedModel]) -> None:
    ours, _ = pair
    rows = [_sequences((5, 1, 30)), _sequences((12,))]
    stacked, unstacked = _run(ours, rows), _run(ours, rows, unstack_layers(ours.params))
    for name in stacked:
        assert_close(stacked[name], unstacked[name], 5e-6)


@pytest.mark.parametrize("name", ["roberta", "distilbert-mlm", "modernbert", "modernbert-biases"])
def test_the_table_backwards_gives_the_checkpoint(name: str, tmp_path: Path) -> None:
    _build(tmp_path, name)
    ours = _load(tmp_path)
    table = import_module(f"jaxpool.converters.{ours.family.name}").TABLE
    written = {table.canonical(key): tensor for key, tensor in load_file(tmp_path / "model.safetensors").items()}
    restored = dict(to_checkpoint(flatten(ours.params), table))
    assert set(restored) <= set(written)
    assert all(key.startswith("vocab_") for key in set(written) - set(restored))
    for key, tensor in restored.items():
        np.testing.assert_array_equal(tensor, written[key])


# RoBERTa's positions


@pytest.mark.parametrize("name", ["roberta", "roberta-other-padding", "roberta-padding-0"])
def test_padding_tokens_in_the_text(name: str, tmp_path: Path) -> None:
    model = _build(tmp_path, name)
    ours, pad = _load(tmp_path), model.config.pad_token_id
    assert ours.config.max_length == 48 - pad - 1
    texts = [[pad, pad, 5, 6, pad, 7], [5, 6, 7, pad, pad], [pad], [9, pad, 2, pad, 3, pad, 8, 2]]
    sequences = [np.array(text) for text in texts]
    lengths = [len(text) for text in texts]
    reference = _reference(model, sequences)
    _compare(_run(ours, [[sequence] for sequence in sequences]), reference, lengths)
    packed = _run(ours, [sequences])
    for i, start in enumerate(np.cumsum(lengths) - lengths):
        span = slice(start, start + lengths[i])
        assert_close(packed["embeddings"][0, span], reference["embeddings"][i, : lengths[i]])
        assert_close(packed["hidden"][0, span], reference["hidden"][i, : lengths[i]])


# ModernBERT's window


def test_one_token_more_or_less_in_the_window_shows(tmp_path: Path) -> None:
    """The comparisons with torch would see a window that is off by one."""
    _build(tmp_path, "modernbert")
    row = [_sequences((40,))]
    right = _run(_load(tmp_path), row)["hidden"]
    for other in (6, 10):
        edit_json(tmp_path / "config.json", local_attention=other)
        assert np.abs(_run(_load(tmp_path), row)["hidden"] - right).max() > 0.01
    edit_json(tmp_path / "config.json", local_attention=9)
    assert np.array_equal(_run(_load(tmp_path), row)["hidden"], right)


def test_both_spellings_are_one_config() -> None:
    new = ModernBertConfig(**MODERNBERT_SIZES, layer_types=[FULL, *[SLIDING, FULL] * 3],
                           rope_parameters={FULL: {"rope_theta": 700.0}, SLIDING: {"rope_theta": 90.0}})  # fmt: skip
    old = {k: v for k, v in (new.to_dict() | OLD_MODERNBERT).items() if v is not ...}
    assert _config(old) == _config(new.to_dict())


# config.json

MODERNBERT = ModernBertConfig().to_dict()


def _config(values: dict[str, Any]) -> Any:
    return find_family(values)[0].config_from_hf(values)


@pytest.mark.parametrize(
    "cls",
    [RobertaConfig, XLMRobertaConfig, CamembertConfig, DistilBertConfig, ModernBertConfig],
    ids=lambda c: c.__name__,
)
def test_default_configs_are_understood(cls: Any) -> None:
    hf = cls()
    config = _config(json.loads(hf.to_json_string(use_diff=False)))
    assert (config.vocab_size, config.hidden_size) == (hf.vocab_size, hf.hidden_size)
    behind = hf.pad_token_id + 1 if "oberta" in cls.__name__ or "Camem" in cls.__name__ else 0
    assert config.max_length == hf.max_position_embeddings - behind


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (RobertaConfig(position_embedding_type="relative_key"), "position_embedding_type"),
        (RobertaConfig(num_attention_heads=7), "num_attention_heads"),
        (RobertaConfig(is_decoder=True), "is_decoder"),
        (DistilBertConfig(n_heads=7), "n_heads"),
        (DistilBertConfig(activation="xielu"), "activation"),
        (DistilBertConfig(some_new_thing=1), "some_new_thing"),
        (ModernBertConfig(num_attention_heads=7), "num_attention_heads"),
        (MODERNBERT | {"num_hidden_layers": 21}, "layer_types"),
        (MODERNBERT | {"layer_types": ["chunked_attention"] * 22}, "layer_types"),
        (MODERNBERT | {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        (MODERNBERT | {"rope_parameters": {FULL: {"partial_rotary_factor": 0.5}}}, "partial_rotary_factor"),
        (MODERNBERT | {"is_causal": True}, "is_causal"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(config: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        _config(config if isinstance(config, dict) else config.to_dict())


# Tokenizers and whole directories


@pytest.fixture(scope="module", params=["roberta", "xlm-roberta", "camembert", "distilbert", "modernbert"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model directory as transformers writes it."""
    directory = tmp_path_factory.mktemp(request.param)
    write_encoder_tokenizer(directory, request.param, model_max_length=LENGTH)
    _build(directory, request.param, vocab_size=load_tokenizer(directory).vocab_size)
    return directory


def test_token_ids_are_transformers(backbone: Path) -> None:
    ours, theirs = load_tokenizer(backbone), AutoTokenizer.from_pretrained(backbone)
    assert ours.special_count == theirs.num_special_tokens_to_add() == 2
    assert len(set(theirs("the quick brown fox").input_ids)) > 5
    assert_same_ids(ours, theirs, [*TELLING, *NASTY])


@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_sentence_transformers_directory(mode: str, backbone: Path, tmp_path: Path) -> None:
    modules = [Pooling(HIDDEN, mode), *([Normalize()] if mode == "mean" else [])]
    directory = write_sentence_transformer(tmp_path / "model", backbone, modules)
    recipe = read_recipe(directory)
    assert (recipe.pooling, recipe.max_length, recipe.source) == ((mode,), LENGTH, "sentence-transformers")
    vectors = assert_same_vectors(directory)
    assert vectors.shape == (len(TEXTS), HIDDEN)
