"""Arguments of vLLM's `LLM` that jaxpool's does not have: which are passed over, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxpool.log import once

# They set how vLLM computes, never what: scripts that pass them run unchanged.
_NO_SAY = frozenset(
    """
    allowed_local_media_path allowed_media_domains async_scheduling block_size compilation_config cpu_offload_gb
    device disable_async_output_proc disable_custom_all_reduce disable_log_requests disable_log_stats
    distributed_executor_backend download_dir enable_chunked_prefill enable_prefix_caching enforce_eager
    gpu_memory_utilization ignore_patterns kv_cache_dtype kv_cache_memory_bytes limit_mm_per_prompt max_logprobs
    max_num_seqs max_parallel_loading_workers max_seq_len_to_capture num_gpu_blocks_override num_lookahead_slots
    preemption_mode scheduling_policy seed served_model_name structured_outputs_config swap_space use_v2_block_manager
    """.split()
)
# They change the answer, and are not there: a value that asks for nothing is let through.
_CHANGES = frozenset(
    """
    enable_lora enable_prompt_embeds enable_prompt_adapter guided_decoding_backend hf_config_path
    io_processor_plugin logits_processors max_lora_rank model_impl
    rope_scaling rope_theta skip_tokenizer_init speculative_config tokenizer_revision
    """.split()
)
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "load_format": ("auto", "safetensors"),
    "tokenizer_mode": ("auto", "hf"),
}


# Of the methods; each changes the answer, so each is refused unless it asks for nothing.
_OF_CALLS = frozenset("lora_request prompt_adapter_request priority guided_options_request".split())


def check_call_arguments(method: str, arguments: Mapping[str, Any]) -> None:
    """Refuses arguments of vLLM's methods that ask for something that is not there.

    Raises:
        ValueError: such an argument.
        TypeError: no argument of vLLM's either.
    """
    if unknown := sorted(set(arguments) - _OF_CALLS):
        raise TypeError(f"LLM.{method}() got unexpected arguments: {', '.join(unknown)}")
    for name, value in arguments.items():
        if value not in (None, 0, []):
            raise ValueError(f"{name} is {value!r}: it would change the answer, and jaxpool does not support it")


def check_vllm_arguments(arguments: Mapping[str, Any]) -> None:
    """Passes over what cannot change the answer (one warning names it), and refuses the rest.

    Raises:
        ValueError: an argument of vLLM's that would change the answer and is not supported.
        TypeError: no argument of vLLM's either.
    """
    unknown = sorted(set(arguments) - _NO_SAY - _CHANGES - set(_CHOICES))
    if unknown:
        raise TypeError(f"LLM() got unexpected arguments: {', '.join(unknown)}")
    for name, value in arguments.items():
        if name in _CHANGES and value not in (None, False, {}, [], ""):
            raise ValueError(f"{name} is {value!r}: it would change the answer, and jaxpool does not support it")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"{name} is {value!r}, expected one of {_CHOICES[name]}")
    if passed_over := sorted(set(arguments) & _NO_SAY):
        once(f"arguments of vLLM's that change nothing here: {', '.join(passed_over)}")
