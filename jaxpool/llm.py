"""`LLM`: the face. Resolves arguments, calls the street behind it, wraps what comes back. No maths."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar, cast

import jax
import numpy as np

from jaxpool import hub, memory, native, scoring
from jaxpool.calls import Call, Calls, OneOrEach
from jaxpool.chat_templates import check_template, read_template
from jaxpool.compile_cache import use_compile_cache
from jaxpool.engine import Engine
from jaxpool.hf_overrides import HFOverrides
from jaxpool.log import once
from jaxpool.outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringRequestOutput,
)
from jaxpool.pooler_config import PoolerConfig
from jaxpool.pooling_params import PoolingParams
from jaxpool.progress import UseTqdm
from jaxpool.prompts import parse_prompt, parse_prompts
from jaxpool.quantization import check_kind
from jaxpool.recipe import Recipe, read_recipe
from jaxpool.runner import Stats
from jaxpool.sharding import replica_meshes
from jaxpool.similarity import similarity
from jaxpool.tasks import ALIASES, AUTO, CLASSIFY, EMBED, TOKEN_CLASSIFY, asked_task
from jaxpool.tokens import load_tokenizer
from jaxpool.vllm_arguments import check_call_arguments, check_vllm_arguments

DTYPES = {
    "float32": "float32",
    "float": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
}

Method = TypeVar("Method", bound=Callable[..., Any])


def _joint(method: Method) -> Method:
    """Of a method that computes: where several processes work together, its error ends the call in all of them."""

    @wraps(method)
    def call(self: LLM, *args: Any, **kwargs: Any) -> Any:
        with self.engine.schedule.call():
            return method(self, *args, **kwargs)

    return cast(Method, call)


class LLM:
    """A pooling engine over one checkpoint. Safe to call from several threads.

    Args:
        model: a directory, or a name on the Hugging Face hub (resolved as `hub.resolve` says).
        task: "embed" ("embedding"), "classify", "score", "reward", or "auto": what the checkpoint is for.
        runner, convert: vLLM's newer way to say it: runner="pooling", convert="embed", "classify" or "reward".
        tokenizer: a directory or name to take the tokenizer from, if not the model's.
        dtype: "float32", "bfloat16", or "auto": float32 on CPU (but bfloat16 beside 8-bit activations, where the CPU
            has units for both), bfloat16 on TPU and GPU.
        quantization: "int8": products of 8-bit weights and activations (W8A8); "int8_weight_only": of 8-bit weights,
            for memory; None: as the checkpoint has them. See `quantization`.
        max_model_len: most tokens of a text, at most what the checkpoint allows.
        revision: branch, tag or commit on the hub.
        hf_token: for gated models.
        hf_overrides: attributes to put over config.json's, or a function from config to config.
        trust_remote_code: accepted for vLLM's sake; a checkpoint's own code is never run.
        chat_template: of a model that scores pairs: its prompt in jinja, or a file of it, instead of its own.
        tensor_parallel_size: devices that share each layer's heads and MLP. Default: 1.
        data_parallel_size: groups of them that share each batch's rows. Default: all chips; on CPU one stream a core.
        mesh: a mesh with a "data" axis, and a "model" axis to split layers over, instead of the two sizes.
        fsdp: whether the groups share out the parameters too, gathering each layer's when it runs. Default: if they
            do not fit otherwise.
        sequence_parallel: whether norms and residuals are split along the sequence over the devices of a group.
        pooler_config: a `PoolerConfig` or a dict of its fields, over the checkpoint's own.
        override_pooler_config: the older name of `pooler_config`.
        mm_processor_kwargs: settings of the checkpoint's image processor, for every picture ("max_pixels", …).
        max_num_batched_tokens: tokens of a batch, padding included. Default: by platform and free memory.
        deterministic: the same text gives the same bits whatever shares its batch (one sequence a row, in a
            row whose shape depends on its own length alone), within one backend, jaxlib and dtype.
        compile_cache: a directory to keep compiled programs in, or True for the default one. A process has one: that
            of the last `LLM` which asked for any.
        vllm_arguments: other arguments of vLLM's; see `vllm_arguments.check_vllm_arguments`.

    Raises:
        FileNotFoundError: the model, or a file of it, is not there.
        ValueError: an argument or the checkpoint is not understood.
        TypeError: an argument that neither jaxpool nor vLLM has.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = hub.MINILM,
        *,
        task: str = AUTO,
        runner: str = "auto",
        convert: str = "auto",
        tokenizer: str | os.PathLike[str] | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        max_model_len: int | None = None,
        revision: str | None = None,
        hf_token: str | None = None,
        hf_overrides: HFOverrides | None = None,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
        tensor_parallel_size: int = 1,
        data_parallel_size: int | None = None,
        mesh: jax.sharding.Mesh | None = None,
        fsdp: bool | None = None,
        sequence_parallel: bool = False,
        pooler_config: PoolerConfig | dict[str, Any] | None = None,
        override_pooler_config: PoolerConfig | dict[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        max_num_batched_tokens: int | None = None,
        deterministic: bool = False,
        compile_cache: bool | str | os.PathLike[str] = False,
        **vllm_arguments: Any,
    ) -> None:
        check_vllm_arguments(vllm_arguments)
        if pooler_config is not None and override_pooler_config is not None:
            raise ValueError("pooler_config and override_pooler_config are one setting: give only one")
        if max_num_batched_tokens is not None and max_num_batched_tokens < 1:
            raise ValueError(f"max_num_batched_tokens is {max_num_batched_tokens}, expected at least 1")
        pooling = PoolerConfig.of(pooler_config or override_pooler_config)
        asked = _asked_task(task, runner, convert, pooling)
        if trust_remote_code:
            once("trust_remote_code changes nothing: a checkpoint's own code is never run", level=20)
        use_compile_cache(compile_cache)
        directory = hub.resolve(model, revision, hf_token)
        self.model = os.fspath(model)
        recipe = pooling.apply(read_recipe(directory, hf_overrides, asked), self.model)
        recipe = _with_template(_with_length(recipe, max_model_len), chat_template)
        recipe = replace(recipe, quantization=check_kind(quantization))
        if mm_processor_kwargs:
            if recipe.family.tower is None:
                raise ValueError("mm_processor_kwargs: this model reads texts only, and no pictures")
            recipe = replace(recipe, pictures=recipe.pictures.with_options(mm_processor_kwargs))
        tokenizer_directory = hub.resolve_tokenizer(tokenizer, hf_token) if tokenizer else recipe.backbone_directory
        read_tokens = load_tokenizer(tokenizer_directory, lower_case=recipe.lower_case)
        if read_tokens.vocab_size > recipe.config.vocab_size:
            raise ValueError(
                f"{tokenizer_directory}: the tokenizer has {read_tokens.vocab_size} tokens, the model "
                f"{recipe.config.vocab_size} embeddings"
            )
        if recipe.max_length <= read_tokens.special_count:
            raise ValueError(
                f"max_model_len is {recipe.max_length}, expected more than the tokenizer's "
                f"{read_tokens.special_count} special tokens"
            )
        meshes = replica_meshes(data_parallel_size, mesh, tensor_parallel_size)
        self.dtype = resolve_dtype(dtype, meshes[0].devices.flat[0].platform, recipe.quantization)
        self._fsdp = memory.needs_fsdp(recipe, self.dtype, meshes[0]) if fsdp is None else fsdp
        ladder = memory.choose_ladder(
            recipe, self.dtype, meshes[0], budget=max_num_batched_tokens, packed=not deterministic, fsdp=self._fsdp
        )
        tower = memory.tower_ladder(recipe, meshes[0], budget=max_num_batched_tokens, packed=not deterministic)
        self.calls = Calls(recipe, read_tokens, self.model)
        self.engine = Engine(
            recipe, read_tokens, meshes, ladder, self.dtype, tower=tower, fsdp=self._fsdp, by_sequence=sequence_parallel
        )

    @property
    def recipe(self) -> Recipe:
        """What decides which answer a text gets."""
        return self.engine.recipe

    @property
    def task(self) -> str:
        """What the instance answers: one of `tasks.TASKS`."""
        return self.recipe.task

    @property
    def supported_tasks(self) -> tuple[str, ...]:
        """All that can be asked of the instance, its own task first; each has programs of its own."""
        return self.recipe.tasks

    @property
    def stats(self) -> Stats:
        """Counters of what was done so far."""
        return self.engine.stats

    @property
    def layout(self) -> dict[str, int | bool]:
        """How the model lies on its devices: replicas, and of each the sizes of its mesh's axes and whether FSDP."""
        meshes = self.engine.meshes
        return {"replicas": len(meshes), **meshes[0].shape, "fsdp": self._fsdp}

    def takes_empty(self, prompt_name: str | None = None, prompt: str | None = None) -> bool:
        """Whether an empty text behind this prompt has any token."""
        return bool(self.calls.prompt(prompt_name, prompt)) or self.engine.tokenizer.special_count > 0

    @_joint
    def encode(
        self,
        prompts: Any = None,
        pooling_params: OneOrEach = None,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: UseTqdm = True,
        pooling_task: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        prompt_token_ids: Any = None,
        **vllm_arguments: Any,
    ) -> list[PoolingRequestOutput]:
        """What the instance's pooler extracts from each prompt.

        Args:
            prompts: a text, a list of token ids, a dict (`prompt` or `prompt_token_ids`), or a list of these.
            pooling_params: options for all prompts, or one a prompt.
            truncate_prompt_tokens: cut longer prompts to so many tokens, −1 for the model's limit; None: a longer
                prompt is an error.
            use_tqdm: a progress bar, none, or something to call instead of tqdm.
            pooling_task: another task of the model than the instance's own: "embed" and "token_embed", or "classify"
                and "token_classify"; "encode" for the one that answers for every token.
            tokenization_kwargs: vLLM's newer place for `truncate_prompt_tokens`, with `truncation_side`,
                `add_special_tokens` and others (see `reading.make_reading`).
            prompt_token_ids: vLLM's older place for token ids: a list, or a list of lists.
            vllm_arguments: other arguments of vLLM's methods, as long as they ask for nothing.

        Returns:
            One output a prompt, in order; `.outputs.data` is float32 [C], or [T, C] for a task that answers for every
            token (of a process reward model: [steps, C]).

        Raises:
            ValueError: something that is no prompt, too long, empty or out of vocabulary; the call gives nothing then.
        """
        check_call_arguments("encode", vllm_arguments)
        call = self.calls.encode(
            _either(prompts, prompt_token_ids),
            pooling_params,
            pooling_task=pooling_task,
            truncate=truncate_prompt_tokens,
            tokenization=tokenization_kwargs,
            none=self._may_be_none,
        )
        return self._answers(call, use_tqdm)

    @_joint
    def embed(
        self,
        prompts: Any = None,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: UseTqdm = True,
        pooling_params: OneOrEach = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        prompt_token_ids: Any = None,
        **vllm_arguments: Any,
    ) -> list[EmbeddingRequestOutput]:
        """The embedding of each prompt as a list of floats. Arguments and errors as `encode`.

        Lists of floats are slow; `embed_array` gives one numpy array.
        """
        check_call_arguments("embed", vllm_arguments)
        self.calls.check_one_vector("embed")
        outputs = self.encode(
            prompts,
            pooling_params,
            truncate_prompt_tokens=truncate_prompt_tokens,
            use_tqdm=use_tqdm,
            pooling_task=EMBED,
            tokenization_kwargs=tokenization_kwargs,
            prompt_token_ids=prompt_token_ids,
        )
        return [EmbeddingRequestOutput.from_base(output) for output in outputs]

    @_joint
    def classify(
        self,
        prompts: Any = None,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: UseTqdm = True,
        pooling_params: OneOrEach = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        prompt_token_ids: Any = None,
        **vllm_arguments: Any,
    ) -> list[ClassificationRequestOutput]:
        """The classes' probabilities of each prompt. Arguments and errors as `encode`."""
        check_call_arguments("classify", vllm_arguments)
        self.calls.check_classifies("Classification", "classify")
        outputs = self.encode(
            prompts,
            pooling_params,
            truncate_prompt_tokens=truncate_prompt_tokens,
            use_tqdm=use_tqdm,
            pooling_task=CLASSIFY,
            tokenization_kwargs=tokenization_kwargs,
            prompt_token_ids=prompt_token_ids,
        )
        return [ClassificationRequestOutput.from_base(output) for output in outputs]

    @_joint
    def reward(
        self,
        prompts: Any = None,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: UseTqdm = True,
        pooling_params: OneOrEach = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        prompt_token_ids: Any = None,
        **vllm_arguments: Any,
    ) -> list[PoolingRequestOutput]:
        """The rewards of each prompt: of every token, or of every step. Arguments, returns and errors as `encode`."""
        check_call_arguments("reward", vllm_arguments)
        self.calls.check_classifies("Reward", "reward")
        return self.encode(
            prompts,
            pooling_params,
            truncate_prompt_tokens=truncate_prompt_tokens,
            use_tqdm=use_tqdm,
            pooling_task=TOKEN_CLASSIFY,
            tokenization_kwargs=tokenization_kwargs,
            prompt_token_ids=prompt_token_ids,
        )

    @_joint
    def score(
        self,
        data_1: Any,
        data_2: Any,
        /,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: UseTqdm = True,
        pooling_params: OneOrEach = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        instruction: str | None = None,
        **vllm_arguments: Any,
    ) -> list[ScoringRequestOutput]:
        """How well texts go together, pair by pair.

        A cross-encoder reads both texts at once and a language model that reranks reads them in its prompt; an
        embedding model's score is the cosine of the two embeddings (`similarity` is the checkpoint's own).

        Args:
            data_1: a text, {"content": [part, …]} as vLLM takes it, or a list of these. Where the score is a cosine
                and the model sees, parts may be pictures ({"type": "image_url", "image_url": {"url": "data:…"}}),
                and an image of PIL's may stand for a text.
            data_2: the same: 1 with 1, 1 with N, or N with N.
            truncate_prompt_tokens, use_tqdm, pooling_params, tokenization_kwargs, vllm_arguments: as `encode` takes
                them; options are one for all pairs, or one a pair.
            chat_template: a jinja template instead of the model's own, for this call.
            instruction: what a model with a template shall judge by.

        Returns:
            One output a pair, in order; `.outputs.score`.

        Raises:
            ValueError: numbers of texts that do not fit, a model that gives no score, and as `encode`.
        """
        check_call_arguments("score", vllm_arguments)
        none = self._may_be_none
        pairs = self.calls.pairs(data_1, data_2, none=none)
        call = self.calls.score(
            pairs,
            pooling_params,
            truncate=truncate_prompt_tokens,
            tokenization=tokenization_kwargs,
            chat_template=chat_template,
            instruction=instruction,
            none=none,
        )
        answers = self._answers(call, use_tqdm)
        if self.recipe.embeds:
            count = len(pairs[0])
            answers = [self._cosine(*both) for both in zip(answers[:count], answers[count:], strict=True)]
        return [ScoringRequestOutput.from_base(answer) for answer in answers]

    @_joint
    def rerank(
        self,
        query: Any,
        documents: Sequence[Any],
        top_n: int | None = None,
        instruction: str | None = None,
        return_documents: bool = False,
        *,
        use_tqdm: UseTqdm = False,
        chat_template: str | None = None,
    ) -> list[scoring.Ranked] | list[scoring.RankedDocument]:
        """The documents by how well they answer the query, best first. Longer texts are cut.

        Args:
            query: one text, or what else `score` takes.
            documents: n of them.
            top_n: how many to give back; None for all.
            instruction, chat_template: as `score` takes them.
            return_documents: whether each comes with its text (or whatever was given).
            use_tqdm: a progress bar, none, or something to call instead of tqdm.

        Returns:
            (index, score) or (index, score, document), by falling score.

        Raises:
            ValueError: as `score`, or `top_n` below 1.
        """
        scoring.rank((), (), top_n, return_documents)  # a wrong top_n is said before the work, not after
        outputs = self.score(
            scoring.parse_side(query, "query", self.recipe),
            list(documents),
            truncate_prompt_tokens=-1,
            use_tqdm=use_tqdm,
            chat_template=chat_template,
            instruction=instruction,
        )
        return scoring.rank([output.outputs.score for output in outputs], documents, top_n, return_documents)

    @_joint
    def embed_array(
        self,
        texts: Any,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        use_tqdm: UseTqdm = False,
        pooling_params: PoolingParams | None = None,
    ) -> np.ndarray:
        """The embeddings of all texts as one array. Longer texts are cut, as sentence-transformers does.

        Args:
            texts: a text or a list of texts (or of what else `encode` takes).
            prompt_name: of the checkpoint's prompts, to put in front of each text; None: its default prompt.
            prompt: a text to put in front, instead.
            use_tqdm: a progress bar, none, or something to call instead of tqdm.
            pooling_params: options for all texts.

        Returns:
            float32 [n, D]; [0, D] for an empty list. `stats.truncated` counts the texts that were cut.

        Raises:
            ValueError: something that is no text, an unknown `prompt_name`, or an instance that pools nothing.
        """
        self.calls.check_one_vector("embed_array")
        parsed = [] if isinstance(texts, (list, tuple)) and not texts else parse_prompts(texts)
        reading = self.calls.cutting(self.calls.prompt(prompt_name, prompt))
        (own,) = self.calls.options(pooling_params, 1, EMBED)
        result = np.empty((len(parsed), min(own.dimensions, self.recipe.embedding_size)), np.float32)
        for sequence, vector in self.engine.run(EMBED, ((p, own) for p in parsed), reading, use_tqdm, len(parsed)):
            for owner in sequence.owners:
                result[owner] = vector
        return result

    @_joint
    def embed_stream(
        self,
        texts: Iterable[Any],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        use_tqdm: UseTqdm = False,
        pooling_params: PoolingParams | None = None,
    ) -> Iterator[np.ndarray]:
        """The embeddings of a stream of texts, in order, in bounded memory.

        Args:
            texts: any iterable; it is drawn from in the caller's thread, a few thousand texts ahead, and up to twelve
                thousand while one takes long.
            prompt_name, prompt, use_tqdm, pooling_params: as in `embed_array`.

        Yields:
            float32 [D] a text.

        Raises:
            ValueError: as `embed_array`, when the text in question is drawn (up to twelve thousand before its turn).
        """
        self.calls.check_one_vector("embed_stream")
        if isinstance(texts, (str, bytes, Mapping)):
            raise ValueError(f"texts: expected an iterable of texts, got one {type(texts).__name__}")
        reading = self.calls.cutting(self.calls.prompt(prompt_name, prompt))
        (own,) = self.calls.options(pooling_params, 1, EMBED)
        parsed = ((parse_prompt(text, f"texts[{i}]"), own) for i, text in enumerate(texts))
        return self.engine.in_order(EMBED, parsed, reading, use_tqdm)

    def encode_query(self, texts: Any, *, use_tqdm: UseTqdm = False) -> np.ndarray:
        """`embed_array` with the checkpoint's "query" prompt, or none: sentence-transformers' `encode_query`."""
        return self.embed_array(texts, prompt=self.recipe.prompts.get("query", ""), use_tqdm=use_tqdm)

    def encode_document(self, texts: Any, *, use_tqdm: UseTqdm = False) -> np.ndarray:
        """`embed_array` with the checkpoint's "document" prompt, or none: sentence-transformers' `encode_document`."""
        return self.embed_array(texts, prompt=self.recipe.prompts.get("document", ""), use_tqdm=use_tqdm)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The checkpoint's own similarity of every row of `a` [n, D] with every row of `b` [m, D]: float32 [n, m]."""
        return similarity(self.recipe.similarity, a, b)

    @_joint
    def warmup(self, *tasks: str) -> None:
        """Compiles and runs every shape for some tasks, so that nothing compiles when they are asked for later
        (`stats.compilations` stands still). `warmup(*llm.supported_tasks)` does so for all that can be asked.

        Args:
            tasks: any of `supported_tasks`; none: the instance's own, `task`.

        Raises:
            ValueError: no task of that name, or not for this model.
            jax.errors.JaxRuntimeError: a batch does not fit the device's memory, at half the token budget either.
        """
        self.engine.warmup([self.calls.task(task) for task in tasks or (self.task,)])

    def memory_plan(self) -> memory.MemoryPlan:
        """What each device holds: its part of the weights and of the largest batch's activations."""
        engine = self.engine
        mesh, ladder = engine.meshes[0], engine.ladder
        platform = mesh.devices.flat[0].platform
        return memory.memory_plan(self.recipe, self.dtype, ladder, mesh, fsdp=self._fsdp, platform=platform)

    def close(self) -> None:
        """Ends the engine's threads. Idempotent; later calls raise RuntimeError."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        meshes = self.engine.meshes
        devices = [str(device) for mesh in meshes for device in mesh.devices.flat]
        lines = {
            "model": self.model,
            **self.recipe.describe(),
            "dtype": str(self.dtype),
            "devices": ", ".join(devices) + (f" ({len(meshes)} replicas)" if len(meshes) > 1 else ""),
            **self.memory_plan().describe(),
        }
        return "LLM(\n" + "".join(f"  {name}: {value}\n" for name, value in lines.items()) + ")"

    @property
    def _may_be_none(self) -> bool:
        """Whether a call may come without a prompt: of several processes, one may have no share of the work."""
        return self.engine.schedule.binding

    def _answers(self, call: Call, use_tqdm: UseTqdm) -> list[PoolingRequestOutput]:
        count = len(call.requests)
        outputs: list[PoolingRequestOutput | None] = [None] * count
        first = self.engine.reserve(count)
        for sequence, data in self.engine.run(call.task, call.requests, call.reading, use_tqdm, count):
            for i in sequence.owners:
                outputs[i] = PoolingRequestOutput(str(first + i), PoolingOutput(data.copy()), sequence.ids.tolist())
        return [output for output in outputs if output is not None]

    def _cosine(self, a: PoolingRequestOutput, b: PoolingRequestOutput) -> PoolingRequestOutput:
        score = scoring.cosine(a.outputs.data[None], b.outputs.data[None])[0]
        pad = self.engine.tokenizer.pad_id
        ids = [*a.prompt_token_ids, *([] if pad is None else [pad]), *b.prompt_token_ids]
        return PoolingRequestOutput(f"{a.request_id}_{b.request_id}", PoolingOutput(np.asarray(score)), ids)


def _asked_task(task: str, runner: str, convert: str, pooling: PoolerConfig) -> str:
    if pooling.task is not None and task != AUTO and ALIASES.get(task, task) != ALIASES.get(pooling.task, pooling.task):
        raise ValueError(f"You cannot overwrite task={task!r} with pooler_config.task={pooling.task!r}!")
    return pooling.asked(asked_task(pooling.task or task, runner, convert))


def _either(prompts: Any, prompt_token_ids: Any) -> Any:
    if prompts is not None and prompt_token_ids is not None:
        raise ValueError("prompts and prompt_token_ids: give only one")
    return prompts if prompt_token_ids is None else prompt_token_ids


def _with_length(recipe: Recipe, max_model_len: int | None) -> Recipe:
    if max_model_len is None:
        return recipe
    if not 1 <= max_model_len <= recipe.max_length:
        raise ValueError(
            f"max_model_len is {max_model_len}, expected 1 … {recipe.max_length}, which the checkpoint's files allow"
        )
    return replace(recipe, max_length=max_model_len)


def _with_template(recipe: Recipe, chat_template: str | None) -> Recipe:
    if chat_template is None:
        return recipe
    if recipe.embeds:
        raise ValueError("chat_template is for models that score pairs of texts; this one embeds")
    return replace(recipe, template=check_template(read_template(chat_template)))


def resolve_dtype(dtype: str, platform: str, quantization: str | None = None) -> np.dtype:
    """The compute dtype that a user's name for it means on a platform.

    Between products of 8-bit activations a CPU that multiplies bfloat16 computes in it: finer than they are, and
    quicker.

    Raises:
        ValueError: no such name.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        finer = quantization == "int8" and native.best("product", "bfloat16") in native.BFLOAT16_UNITS
        name = "float32" if platform == "cpu" and not finer else "bfloat16"
    if name not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {['auto', *DTYPES]}")
    return jax.numpy.dtype(DTYPES[name])
