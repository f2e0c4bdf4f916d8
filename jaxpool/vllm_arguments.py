"""vLLM's arguments that jaxpool has no use for: what it does with each, for `LLM()` and for `jaxpool serve`.

Those that set how vLLM computes, never what, are passed over with one warning: scripts that pass them run unchanged.
Those that would change the answer are refused, unless they ask for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxpool.log import once

# How a command line gives an argument.
FLAG, ONE, SEVERAL = "flag", "one", "several"
# Whose an argument is: `LLM`'s and `vllm serve`'s, or only the latter's; or the former's, since jaxpool serves by it.
ENGINE, SERVER, SERVED = "engine", "server", "served"
# What may be asked of an argument: anything, since it is passed over; or nothing, since it would change the answer.
ANYTHING: tuple[Any, ...] | None = None
NOTHING: tuple[Any, ...] = (None, False, {}, [], "")


@dataclass(frozen=True)
class Argument:
    """One of vLLM's.

    Attributes:
        may_be: values that are let through; None: any, with a warning.
        whose: `ENGINE`, `SERVER` or `SERVED`.
        form: `FLAG`, `ONE` or `SEVERAL` values.
    """

    may_be: tuple[Any, ...] | None
    whose: str
    form: str


# Of vLLM 0.7 to 0.33.
_TABLE: tuple[tuple[tuple[Any, ...] | None, str, str, str], ...] = (
    (ANYTHING, SERVED, ONE, "allowed_local_media_path allowed_media_domains limit_mm_per_prompt served_model_name"),
    (
        ANYTHING, ENGINE, FLAG,
        """
        aggregate_engine_logging async_scheduling calculate_kv_scales data_parallel_external_lb data_parallel_hybrid_lb
        disable_async_output_proc disable_cascade_attn disable_chunked_mm_input disable_custom_all_reduce
        disable_hybrid_kv_cache_manager disable_log_requests disable_log_stats disable_mm_preprocessor_cache
        disable_nccl_for_dp_synchronization enable_chunked_prefill enable_dbo enable_eplb enable_expert_parallel
        enable_log_requests enable_lora_bias enable_mfu_metrics enable_multimodal_encoder_data_parallel
        enable_prefix_caching enable_sleep_mode enforce_eager eplb_log_balancedness fully_sharded_loras
        guided_decoding_disable_additional_properties guided_decoding_disable_any_whitespace
        guided_decoding_disable_fallback kv_sharing_fast_prefill multi_step_stream_outputs ray_workers_use_nsight
        skip_mm_profiling use_tqdm_on_load use_v2_block_manager
        """,
    ),
    (
        ANYTHING, ENGINE, ONE,
        """
        additional_config all2all_backend attention_backend attention_config block_size code_revision
        collect_detailed_traces compilation_config cpu_offload_gb data_parallel_address data_parallel_backend
        data_parallel_rank data_parallel_rpc_port data_parallel_size_local data_parallel_start_rank
        dbo_decode_token_threshold dbo_prefill_token_threshold decode_context_parallel_size default_mm_loras device
        distributed_executor_backend download_dir ec_transfer_config eplb_config expert_placement_strategy
        generation_config gpu_memory_utilization guided_decoding_backend kernel_config kv_cache_dtype
        kv_cache_memory_bytes kv_events_config kv_offloading_backend kv_offloading_size kv_transfer_config
        logits_processor_pattern logprobs_mode long_prefill_token_threshold lora_dtype lora_extra_vocab_size
        mamba_block_size mamba_cache_dtype mamba_ssm_cache_dtype master_addr master_port max_cpu_loras
        max_cudagraph_capture_size max_logprobs max_long_partial_prefills max_lora_rank max_loras
        max_num_partial_prefills max_num_seqs max_parallel_loading_workers max_prompt_adapter_token
        max_prompt_adapters max_seq_len_to_capture mm_encoder_attn_backend mm_encoder_tp_mode mm_processor_cache_gb
        mm_processor_cache_type mm_shm_cache_max_object_size_mb model_loader_extra_config nnodes node_rank
        num_gpu_blocks_override num_lookahead_slots num_redundant_experts num_scheduler_steps optimization_level
        override_attention_dtype override_generation_config pipeline_parallel_size preemption_mode
        prefill_context_parallel_size prefix_caching_hash_algo profiler_config pt_load_map_location
        quantization_param_path reasoning_parser reasoning_parser_plugin safetensors_load_strategy scheduler_cls
        scheduler_delay_factor scheduling_policy seed show_hidden_metrics_for_version speculative_config
        stream_interval structured_outputs_config swap_space tokenizer_pool_extra_config tokenizer_pool_size
        tokenizer_pool_type video_pruning_rate worker_cls worker_extension_cls
        """,
    ),
    (ANYTHING, ENGINE, SEVERAL, "cudagraph_capture_sizes ignore_patterns long_lora_scaling_factors"),
    (
        ANYTHING, SERVER, FLAG,
        """
        cohere_is_reasoning_model data_parallel_multi_port_external_lb disable_flash_late_interaction
        disable_frontend_multiprocessing enable_auto_tool_choice enable_flash_late_interaction
        enable_force_include_usage enable_log_deltas enable_log_outputs enable_offline_docs
        enable_per_request_metrics enable_prompt_tokens_details enable_reasoning enable_request_id_headers
        enable_server_load_tracking enable_ssl_refresh enable_tokenizer_info_endpoint
        exclude_tools_when_tool_choice_none expand_tools_even_if_tool_choice_none log_error_stack
        return_tokens_as_token_ids
        """,
    ),
    (
        ANYTHING, SERVER, ONE,
        """
        api_server_count cohere_format data_parallel_supervisor_port disable_access_log_for_endpoints fingerprint_mode
        fingerprint_value h11_max_header_count h11_max_incomplete_event_size max_log_len response_role tool_call_parser
        tool_parser_plugin tool_server
        """,
    ),
    (
        NOTHING, ENGINE, FLAG,
        """
        disable_sliding_window enable_lora enable_mm_embeds enable_prompt_adapter enable_prompt_embeds
        interleave_mm_strings language_model_only skip_tokenizer_init
        """,
    ),
    (
        NOTHING, ENGINE, ONE,
        """
        hf_config_path io_processor_plugin media_io_kwargs qlora_adapter_name_or_path rope_scaling rope_theta
        tokenizer_revision
        """,
    ),
    (NOTHING, ENGINE, SEVERAL, "logits_processors"),
    (NOTHING, SERVER, FLAG, "grpc headless tokens_only"),
    (NOTHING, SERVER, ONE, "config"),
    (NOTHING, SERVER, SEVERAL, "lora_modules prompt_adapters"),
    (("auto", "hf"), ENGINE, ONE, "config_format tokenizer_mode"),
    # All of them load the same weights.
    (("auto", "hf", "safetensors", "pt", "fastsafetensors", "runai_streamer"), ENGINE, ONE, "load_format"),
    (("auto", "vllm", "transformers"), ENGINE, ONE, "model_impl"),
)  # fmt: skip
ARGUMENTS: Mapping[str, Argument] = {
    name: Argument(may_be, whose, form) for may_be, whose, form, names in _TABLE for name in names.split()
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
    """`pass_over` for what `LLM()` was given.

    Raises:
        ValueError: as `pass_over`.
        TypeError: no argument of vLLM's `LLM` either.
    """
    if unknown := sorted(name for name in arguments if name not in ARGUMENTS or ARGUMENTS[name].whose == SERVER):
        raise TypeError(f"LLM() got unexpected arguments: {', '.join(unknown)}")
    pass_over(arguments)


def pass_over(arguments: Mapping[str, Any], called: Callable[[str], str] = str) -> None:
    """Passes over what cannot change the answer (one warning names it all), and refuses the rest.

    Args:
        arguments: names of `ARGUMENTS` -> values.
        called: what the user calls them.

    Raises:
        ValueError: an argument that would change the answer.
    """
    passed = []
    for name, value in arguments.items():
        may_be = ARGUMENTS[name].may_be
        if may_be is None:
            passed.append(called(name))
        elif value not in NOTHING and value not in may_be:
            why = f", expected one of {may_be}"
            if may_be is NOTHING:
                why = ": it would change the answer, and jaxpool does not support it"
            raise ValueError(f"{called(name)} is {value!r}{why}")
    if passed:
        once(f"arguments of vLLM's that change nothing here: {', '.join(sorted(passed))}")
