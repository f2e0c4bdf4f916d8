"""Reading Hugging Face's config.json without guessing: what a family does not understand, it refuses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Attributes of every config.json that have no say in the hidden states of a forward pass without dropout.
_HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _num_labels architectures auto_map
    attention_dropout attention_probs_dropout_prob bad_words_ids begin_suppress_tokens bos_token_id classifier_dropout
    cls_token_id decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout_prob id2label initializer_factor
    initializer_range is_matryoshka label2id language layerdrop length_penalty mask_token_id matryoshka_dimensions
    max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    output_attentions output_hidden_states output_past output_scores pad_token_id prefix problem_type
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sbert_ce_default_activation_function sentence_transformers sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype
    torchscript transformers.js_config transformers_version typical_p unk_token_id use_bfloat16 use_cache
    """.split()
)

# Attributes of every config.json that would change the hidden states: only these values are understood.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}


class ConfigError(ValueError):
    """config.json asks for something that this family does not compute."""


class HFConfig:
    """config.json of one checkpoint, read attribute by attribute; `finish` refuses what nobody read.

    Args:
        values: the parsed config.json.
        ignore: attributes of this model type that have no say in the hidden states.
    """

    def __init__(self, values: Mapping[str, Any], ignore: Collection[str] = ()) -> None:
        self._values = values
        self._ignore = set(ignore)
        self._read: set[str] = set()
        self._problems: list[str] = []

    def get(self, name: str, default: Any) -> Any:
        """The attribute's value, or `default` where it is missing or null."""
        self._read.add(name)
        value = self._values.get(name)
        return default if value is None else value

    def nullable(self, name: str, default: Any) -> Any:
        """The attribute's value, null included, or `default` where it is missing."""
        self._read.add(name)
        return self._values.get(name, default)

    def need(self, name: str) -> Any:
        """The attribute's value; missing is an error."""
        self._read.add(name)
        if self._values.get(name) is None:
            raise ConfigError(f"config.json: `{name}` is missing")
        return self._values[name]

    def only(self, name: str, *allowed: Any) -> None:
        """Accepts the attribute missing, null, or with one of the `allowed` values."""
        self._read.add(name)
        value = self._values.get(name)
        if value is not None and value not in allowed:
            self._problems.append(f"`{name}` is {value!r}, and only {' or '.join(map(repr, allowed))} is understood")

    def one_of(self, name: str, allowed: Collection[str], default: str) -> str:
        """A named choice from a table."""
        value = self.get(name, default)
        if value not in allowed:
            self._problems.append(f"`{name}` is {value!r}, and only {sorted(allowed)} are understood")
        return value

    def finish(self) -> None:
        """Raises one `ConfigError` that lists all that was not understood."""
        for name, allowed in _NEUTRAL.items():
            self.only(name, *allowed)
        for name, value in self._values.items():
            if name not in self._read and name not in _HARMLESS and name not in self._ignore and value is not None:
                self._problems.append(f"`{name}` = {value!r} is not known to this family")
        if self._problems:
            kind = self._values.get("model_type", "?")
            raise ConfigError(
                f"config.json (model_type {kind!r}): " + "; ".join(self._problems) + ". A model that may be silently "
                "wrong does not load; hf_overrides={'its_name': None} drops an attribute that you know to be harmless."
            )
