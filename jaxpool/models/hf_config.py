"""Reading Hugging Face's config.json without guessing: what a family does not understand, it refuses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import isfinite
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What a value in a JSON file has to be: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]

    def check(self, value: Any, file: object, name: str) -> None:
        """Raises a `ConfigError` that names file and key, unless the value fits or is null."""
        if value is not None and not self.fits(value):
            raise ConfigError(f"{file}: `{name}` is {value!r}, expected {self.words}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and isfinite(value))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


ANYTHING = Kind("anything", lambda value: True)
SIZE = Kind("a positive integer", lambda value: _is_integer(value) and value > 0)
INDEX = Kind("an integer of at least 0", lambda value: _is_integer(value) and value >= 0)
INTEGER = Kind("an integer", _is_integer)
NUMBER = Kind("a number", _is_number)
FLAG = Kind("true or false", lambda value: isinstance(value, bool) or (_is_integer(value) and value in (0, 1)))
TEXT = Kind("a string", lambda value: isinstance(value, str))
TEXTS = Kind("a list of strings", _are_texts)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))

# What the families read, by kind; a value of another kind would end in a traceback far from the file.
_KINDS: Mapping[str, Kind] = {
    name: kind
    for kind, names in {
        SIZE: """
            dim global_attn_every_n_layers head_dim hidden_dim hidden_size intermediate_size local_attention lora_rank
            max_position_embeddings n_heads n_layers num_attention_heads num_hidden_layers num_key_value_heads
            relative_attention_num_buckets sliding_window_pattern type_vocab_size vocab_size
        """,
        INTEGER: "max_window_layers pad_token_id sliding_window",
        NUMBER: """
            attn_logit_softcapping global_rope_theta layer_norm_eps local_rope_theta lora_alpha norm_eps
            query_pre_attn_scalar rms_norm_eps rope_local_base_freq rope_theta rotary_emb_base
        """,
        FLAG: """
            attention_bias bias classifier_bias is_causal load_trained_adapters mlp_bias norm_bias
            use_bidirectional_attention use_sliding_window
        """,
        TEXT: """
            activation classifier_activation classifier_pooling hidden_act hidden_activation model_type
        """,
        TEXTS: "architectures layer_types lora_adaptations",
        OBJECT: "rope_parameters rope_scaling",
    }.items()
    for name in names.split()
}

# Attributes of every config.json that have no say in the hidden states of a forward pass without dropout.
_HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _name_or_path
    _num_labels adapters add_pooling_layer architectures attention_dropout attention_probs_dropout_prob
    attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    classifier_dropout classifier_from_token cls_token_id decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping emb_size encoder_no_repeat_ngram_size eos_token_id eos_token_ids exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout_prob id2label
    initializer_factor initializer_range is_composition is_matryoshka is_original_qwen3_reranker label2id language
    layerdrop length_penalty mask_token_id matryoshka_dimensions max_length max_seq_length method min_length
    model_max_length model_parallel model_type name no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_past output_scores pad_token_id prefix
    problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    sbert_ce_default_activation_function sentence_transformers sep_token_id summary_activation summary_first_dropout
    summary_last_dropout summary_mode summary_proj_to_labels summary_type summary_use_proj suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p
    torch_dtype torchscript transformers.js_config transformers_version typical_p unk_token_id use_bfloat16 use_cache
    use_sep_token xla_device
    """.split()
)

# Attributes of every config.json that would change the hidden states: only these values are understood.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
}

# Ways of storing weights in fewer bits that are written in capitals.
_CAPITALS = frozenset("aqlm awq eetq fp8 gptq hqq mxfp4 spqr vptq".split())


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
        value = self._value(name)
        return default if value is None else value

    def nullable(self, name: str, default: Any) -> Any:
        """The attribute's value, null included, or `default` where it is missing."""
        value = self._value(name)
        return value if name in self._values else default

    def need(self, name: str) -> Any:
        """The attribute's value; missing is an error."""
        value = self._value(name)
        if value is None:
            raise ConfigError(f"config.json: `{name}` is missing")
        return value

    def _value(self, name: str) -> Any:
        self._read.add(name)
        value = self._values.get(name)
        _KINDS.get(name, ANYTHING).check(value, "config.json", name)
        return value

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
        self._read.add("quantization_config")
        _refuse_quantised(self._values.get("quantization_config"))
        for name, allowed in _NEUTRAL.items():
            self.only(name, *allowed)
        for name, value in self._values.items():
            if name not in self._read and name not in _HARMLESS and name not in self._ignore and value is not None:
                self._problems.append(f"`{name}` = {value!r} is not known to this family")
        self.refuse()

    def refuse(self) -> None:
        """Raises a `ConfigError` that lists the values read so far that are not understood."""
        if self._problems:
            kind = self._values.get("model_type", "?")
            raise ConfigError(
                f"config.json (model_type {kind!r}): " + "; ".join(self._problems) + ". A model that may be silently "
                "wrong does not load; hf_overrides={'its_name': None} drops an attribute that you know to be harmless."
            )


def _refuse_quantised(stored: Any) -> None:
    """Raises a `ConfigError` that names the way in which the weights are quantised, if they are."""
    if stored is None:
        return
    OBJECT.check(stored, "config.json", "quantization_config")
    unnamed = "bitsandbytes" if any(name.startswith("load_in_") for name in stored) else "a quantised"
    method = str(stored.get("quant_method") or unnamed)  # older bitsandbytes did not write its name
    raise ConfigError(
        f"config.json: the checkpoint is stored in {method.upper() if method in _CAPITALS else method} form "
        "(`quantization_config`); jaxpool reads float checkpoints: take the one that it was made from"
    )
