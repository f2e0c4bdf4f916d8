"""BERT and MPNet against transformers' torch models, intermediate by intermediate, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM, BertForPreTraining, BertModel, MPNetForMaskedLM, MPNetModel, PreTrainedModel

from jaxpool.batch import OPTIONS, Inputs, unfold
from jaxpool.models.family import Family, Output
from jaxpool.params import unstack_layers
from jaxpool.placement import load_to_mesh
from jaxpool.recipe import read_recipe
from jaxpool.sharding import replica_meshes
from tests.parity.checkpoints import assert_close, make_model, read_json, write_bin

pytestmark = pytest.mark.torch

VOCAB = 90
PAD = {"bert": 0, "mpnet": 1}

Save = Callable[[PreTrainedModel, Path], None]


def _safetensors(model: PreTrainedModel, directory: Path) -> None:
    model.save_pretrained(directory)
    assert (directory / "model.safetensors").exists()


def _sharded(model: PreTrainedModel, directory: Path) -> None:
    model.save_pretrained(directory, max_shard_size="8KB")
    index = read_json(directory / "model.safetensors.index.json")
    assert len(set(index["weight_map"].values())) > 3
    assert not (directory / "model.safetensors").exists()


def _bin(model: PreTrainedModel, directory: Path, *, old_names: bool = False, **how: Any) -> None:
    state = dict(model.state_dict())
    if old_names:
        state = {
            key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
            for key, value in state.items()
        }
        word = next(key for key in state if key.endswith("word_embeddings.weight"))
        state[word.replace("word_embeddings.weight", "position_ids")] = torch.arange(48)[None]
    write_bin(directory, model.config, state, **how)


def _bin_of_views(model: PreTrainedModel, directory: Path) -> None:
    """Tensors that are no plain blocks: transposed, and parts of one storage behind one another."""
    state = dict(model.state_dict())
    for key, value in state.items():
        if value.ndim == 2:
            state[key] = value.t().contiguous().t()
    queries = [key for key in state if key.endswith("attention.self.query.bias")]
    for key, part in zip(queries, torch.stack([state[key] for key in queries]), strict=True):
        state[key] = part
    assert not state["encoder.layer.1.intermediate.dense.weight"].is_contiguous()
    assert state["encoder.layer.1.attention.self.query.bias"].storage_offset() > 0
    write_bin(directory, model.config, state)


def _parameters_themselves(model: PreTrainedModel, directory: Path) -> None:
    """`torch.save(dict(model.named_parameters()))`: parameters instead of tensors."""
    write_bin(directory, model.config, dict(model.named_parameters()))


# name -> (kind, class, dtype of the weights in the file, config, how it is saved)
CHECKPOINTS: dict[str, tuple[str, type[PreTrainedModel], torch.dtype, dict[str, Any], Save]] = {
    "bert": ("bert", BertModel, torch.float32, {"num_hidden_layers": 4}, _safetensors),
    "bert-relu-bf16": ("bert", BertModel, torch.bfloat16, {"hidden_act": "relu"}, _safetensors),
    "bert-gelu_new-fp16-sharded": ("bert", BertModel, torch.float16,
                                   {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}, _sharded),
    "bert-silu-one-layer": ("bert", BertModel, torch.float32,
                            {"hidden_act": "silu", "num_hidden_layers": 1, "type_vocab_size": 1}, _safetensors),
    "bert-bin-bf16": ("bert", BertModel, torch.bfloat16, {}, _bin),
    "bert-bin-views": ("bert", BertModel, torch.float32, {}, _bin_of_views),
    "bert-bin-parameters-fp16": ("bert", BertModel, torch.float16, {}, _parameters_themselves),
    "bert-bin-sharded": ("bert", BertModel, torch.float32, {"layer_norm_eps": 1e-3}, partial(_bin, shards=5)),
    "bert-mlm": ("bert", BertForMaskedLM, torch.float32, {}, _safetensors),
    "bert-pretraining-old-bin-old-names": ("bert", BertForPreTraining, torch.float32, {},
                                           partial(_bin, legacy=True, old_names=True)),
    "mpnet": ("mpnet", MPNetModel, torch.float32, {"num_hidden_layers": 4}, _safetensors),
    "mpnet-relu-bf16-sharded": ("mpnet", MPNetModel, torch.bfloat16,
                                {"hidden_act": "relu", "layer_norm_eps": 1e-5}, _sharded),
    "mpnet-mlm-gelu_new-fp16": ("mpnet", MPNetForMaskedLM, torch.float16, {"hidden_act": "gelu_new"}, _safetensors),
    "mpnet-mlm-old-bin-sharded": ("mpnet", MPNetForMaskedLM, torch.float32, {},
                                  partial(_bin, legacy=True, shards=3)),
    "mpnet-more-buckets": ("mpnet", MPNetModel, torch.float32, {"relative_attention_num_buckets": 40}, _safetensors),
}  # fmt: skip


def _load(directory: Path) -> SimpleNamespace:
    """jaxpool's side: the family, its config and the params in float32."""
    recipe = read_recipe(directory)
    params = load_to_mesh(recipe, replica_meshes(None, None)[0], np.float32, extras=True)["backbone"]
    return SimpleNamespace(family=recipe.family, config=recipe.config, params=params)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(family: Family, config: Any, names: tuple[str, ...], params: Any, inputs: Inputs) -> Output:
    return family.run(params, unfold(inputs), config, capture=names)


def _run(ours: SimpleNamespace, rows: Sequence[Sequence[np.ndarray]], params: Any = None) -> dict[str, np.ndarray]:
    """Hidden states and all captures of packed rows; padding ids are 0, as in `runner.fill`.

    Always 4 rows of up to 8 sequences, and of few lengths: one program serves many tests.
    """
    longest = max(sum(map(len, row)) for row in rows)
    ids, lengths = np.zeros((4, 64 if longest < 64 else longest + 5), np.int32), np.zeros((4, 8), np.int32)
    for r, row in enumerate(rows):
        ids[r, : sum(map(len, row))] = np.concatenate(row)
        lengths[r, : len(row)] = [len(sequence) for sequence in row]
    names = tuple(name for name in ours.family.captures if name != "pooler" or "pooler" in ours.params)
    unused = {name: np.zeros_like(lengths) for name in OPTIONS}  # what poolers and heads read
    inputs = Inputs(**unused | {"ids": ids, "lengths": lengths})
    output = _compiled(ours.family, ours.config, names, ours.params if params is None else params, inputs)
    assert set(output.captured) == set(names)
    return {"hidden": np.asarray(output.hidden)} | {k: np.asarray(v) for k, v in output.captured.items()}


def _reference(model: PreTrainedModel, kind: str, sequences: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The same intermediates from torch in float64 (no rounding but jaxpool's), of a batch padded to its longest."""
    base = getattr(model, model.base_model_prefix, model)
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), PAD[kind])
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.from_numpy(sequence)
        mask[i, : len(sequence)] = 1
    attended: list[torch.Tensor] = []
    blocks = [layer.attention.output if kind == "bert" else layer.attention for layer in base.encoder.layer]
    first = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731
    hooks = [block.register_forward_hook(lambda _m, _i, output: attended.append(first(output))) for block in blocks]
    with torch.inference_mode():
        output = base(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        result = {
            "hidden": output.last_hidden_state,
            "embeddings": output.hidden_states[0],
            "layer": torch.stack(output.hidden_states[1:]),
            "attention": torch.stack(attended),
        }
        if base.pooler is not None:
            result["pooler"] = torch.tanh(base.pooler.dense(output.last_hidden_state))
            assert_close(result["pooler"][:, 0], output.pooler_output, 1e-12)
        if kind == "mpnet":
            result["bias"] = base.encoder.compute_position_bias(output.last_hidden_state)[:1]
    for hook in hooks:
        hook.remove()
    return {name: value.numpy() for name, value in result.items()}


def _sequences(lengths: Sequence[int], seed: int = 0, low: int = 0) -> list[np.ndarray]:
    """Random ids; the lowest are the special tokens, so padding ids stand inside the texts."""
    rng = np.random.default_rng(seed)
    return [rng.integers(low, VOCAB, length) for length in lengths]


def _compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], lengths: Sequence[int]) -> None:
    """One sequence a row on both sides; padding is left out."""
    assert set(ours) == set(theirs)
    for name, reference in theirs.items():
        if name == "bias":
            width = reference.shape[-1]
            assert_close(ours[name][..., :width, :width], reference)
            continue
        for row, length in enumerate(lengths):
            index = (..., row, slice(length), slice(None))
            assert_close(ours[name][index], reference[index])


def _build(directory: Path, name: str) -> tuple[str, PreTrainedModel]:
    kind, cls, dtype, config, save = CHECKPOINTS[name]
    model = make_model(kind, cls, vocab_size=VOCAB, **config).to(dtype)
    save(model, directory)
    return kind, model.to(torch.float64)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_intermediate_is_torchs(name: str, tmp_path: Path) -> None:
    kind, model = _build(tmp_path, name)
    lengths = (1, 7, 23, 40)
    sequences = _sequences(lengths)
    ours = _run(_load(tmp_path), [[sequence] for sequence in sequences])
    _compare(ours, _reference(model, kind, sequences), lengths)


@pytest.fixture(scope="module", params=["bert", "mpnet"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    """A checkpoint of either kind on both sides."""
    directory = tmp_path_factory.mktemp(request.param)
    kind, model = _build(directory, request.param)
    return kind, _load(directory), model


def test_packed_sequences_are_each_as_alone(pair: tuple[str, Any, Any]) -> None:
    kind, ours, model = pair
    rows = [_sequences((5, 1, 30), seed=1), _sequences((40,), seed=2), _sequences((1, 1, 2, 17, 9, 8), seed=3)]
    packed = _run(ours, rows)
    for r, row in enumerate(rows):
        start = 0
        for sequence in row:
            alone = _reference(model, kind, [sequence])
            for name in set(alone) - {"bias"}:
                span = packed[name][..., r, start : start + len(sequence), :]
                assert_close(span, alone[name][..., 0, :, :])
            start += len(sequence)


def test_mpnet_with_too_few_buckets_is_refused(tmp_path: Path) -> None:
    make_model("mpnet", relative_attention_num_buckets=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json: `relative_attention_num_buckets` is 16"):
        read_recipe(tmp_path)


def test_padding_is_finite(pair: tuple[str, Any, Any]) -> None:
    _, ours, _ = pair
    for name, values in _run(ours, [_sequences((3, 2))[:1], _sequences((9,))]).items():
        assert np.isfinite(values).all(), name


def test_unstacked_layers_compute_the_same(pair: tuple[str, Any, Any]) -> None:
    _, ours, _ = pair
    rows = [_sequences((5, 1, 30)), _sequences((12,))]
    stacked, unstacked = _run(ours, rows), _run(ours, rows, unstack_layers(ours.params))
    for name in stacked:
        assert_close(stacked[name], unstacked[name], 5e-6)


def test_mpnet_at_long_distances(tmp_path: Path) -> None:
    # Behind 8 tokens the buckets grow logarithmically, behind 128 there is one for all.
    model = make_model("mpnet", vocab_size=VOCAB, max_position_embeddings=302)
    model.save_pretrained(tmp_path)
    model.to(torch.float64)
    ours = _load(tmp_path)
    assert ours.config.max_length == 300
    lengths = (300, 129, 140)
    sequences = _sequences(lengths)
    _compare(_run(ours, [[sequence] for sequence in sequences]), _reference(model, "mpnet", sequences), lengths)


def test_mpnet_with_padding_tokens_in_the_text(pair: tuple[str, Any, Any]) -> None:
    kind, ours, model = pair
    texts = [[1, 1, 5, 6, 1, 7], [5, 6, 7, 1, 1], [1], [0, 1, 2, 1, 3, 1, 4, 2]]
    sequences = [np.array(text) for text in texts]
    lengths = [len(text) for text in texts]
    reference = _reference(model, kind, sequences)
    _compare(_run(ours, [[sequence] for sequence in sequences]), reference, lengths)
    packed = _run(ours, [sequences])
    for i, start in enumerate(np.cumsum(lengths) - lengths):
        span = slice(start, start + lengths[i])
        assert_close(packed["embeddings"][0, span], reference["embeddings"][i, : lengths[i]])
        assert_close(packed["hidden"][0, span], reference["hidden"][i, : lengths[i]])
    if kind == "mpnet":
        # The padding id is no plain token: the same text without it has other positions, hence other embeddings.
        plain = _run(ours, [[np.array([8, 8, 5])]])["embeddings"][0, 2]
        skipped = _run(ours, [[np.array([1, 1, 5])]])["embeddings"][0, 2]
        assert np.abs(plain - skipped).max() > 0.1
