"""Tiny random decoders with whatever head, in directories with a tokenizer, and what torch makes of their texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer

from tests.parity.checkpoints import edit_json, write_bin, write_json
from tests.parity.decoder_tokenizers import bare_tokenizer, surround

# Three queries share a key; sizes share no factor with a vector unit's.
SIZES = {
    "hidden_size": 36,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
HEAD_SIZE = {"Qwen2": 6}
TOKENIZERS = {"Llama": "Llama", "Mistral": "Llama", "Qwen2": "Qwen", "Qwen3": "Qwen"}


def with_words(tokenizer: Tokenizer, words: Sequence[str]) -> Tokenizer:
    """Each word (as the vocabulary spells it) becomes a token that merges lead to."""
    values = json.loads(tokenizer.to_str())
    vocabulary, merges = values["model"]["vocab"], values["model"]["merges"]
    # Behind all the ids there are, added tokens included.
    free = tokenizer.get_vocab_size()
    for word in words:
        for piece in (*word, *(word[:end] for end in range(2, len(word) + 1))):
            if piece not in vocabulary:
                vocabulary[piece] = free
                free += 1
        new = ([word[: end - 1], word[end - 1]] for end in range(2, len(word) + 1))
        merges += [merge for merge in new if merge not in merges]
    return Tokenizer.from_str(json.dumps(values))


def write_words(
    directory: Path,
    architecture: str,
    words: Sequence[str] = (),
    added: Mapping[str, bool] | None = None,
    **config: Any,
) -> Tokenizer:
    """The tokenizer of a family: what comes before a text there stands before it, and nothing behind.

    Args:
        words: more tokens of the vocabulary.
        added: more added tokens, each with whether it is special.
        config: more of tokenizer_config.json.
    """
    kind = TOKENIZERS.get(architecture, "Gemma")
    tokenizer = with_words(bare_tokenizer(kind), words)
    tokenizer.add_tokens(
        [AddedToken(text, special=special, normalized=False) for text, special in (added or {}).items()]
    )
    if kind != "Qwen":
        surround(tokenizer, {"Llama": "<s>", "Gemma": "<bos>"}[kind])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"tokenizer_class": f"{kind}Tokenizer".replace("Qwen", "Qwen2"), **config}
    if kind != "Qwen":
        named |= {"bos_token": "<s>" if kind == "Llama" else "<bos>", "unk_token": "<unk>"}
    write_json(directory / "tokenizer_config.json", named)
    return tokenizer


def make(architecture: str, kind: str, vocab_size: int, *, seed: int = 0, **config: Any) -> Any:
    """A random model: ("Gemma3Text", "ForCausalLM") is transformers' Gemma3ForCausalLM."""
    values = SIZES | {"vocab_size": vocab_size, "head_dim": HEAD_SIZE.get(architecture, 10)} | config
    made = getattr(transformers, f"{architecture}Config")(**values)
    family = architecture if kind == "Model" else architecture.removesuffix("Text")
    model = getattr(transformers, f"{family}{kind}")(made)
    randomise(model, seed, ones=not architecture.startswith("Gemma"))
    return model.eval()


def randomise(model: torch.nn.Module, seed: int = 0, *, ones: bool = True) -> None:
    """Random values everywhere; norms about one where the family's do not add it themselves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(0, 0.2, generator=generator)
            if "norm" in key and ones:
                parameter += 1


def save(
    directory: Path, architecture: str, config: Any, state: Mapping[str, torch.Tensor], *, shards: int = 0
) -> Path:
    """A model of an architecture that transformers has no class for; in safetensors, or in so many .bin files."""
    config.architectures = [architecture]
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    if shards:
        write_bin(directory, config, state, shards=shards)
    else:
        config.save_pretrained(directory)
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    # What the published ones say beside it, and never runs here.
    edit_json(directory / "config.json", auto_map={"AutoModel": f"modeling.{architecture}"})
    return directory


def states(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """The last hidden states [T, D] of one text."""
    with torch.inference_mode():
        return getattr(model, "model", model)(torch.tensor([list(ids)]), use_cache=False).last_hidden_state[0]
