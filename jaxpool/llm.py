"""`LLM`: the face. Resolves arguments, calls the street behind it, wraps what comes back. No maths."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxpool import hub, memory, pipeline
from jaxpool.batch import Sequence as TokenSequence
from jaxpool.batching import Ladder
from jaxpool.compile_cache import use_compile_cache
from jaxpool.loading import load_to_mesh
from jaxpool.log import once
from jaxpool.outputs import EmbeddingRequestOutput, PoolingOutput, PoolingRequestOutput
from jaxpool.pooler_config import PoolerConfig
from jaxpool.pooling_params import Options, PoolingParams, spread
from jaxpool.progress import Progress, UseTqdm
from jaxpool.prompts import Parsed, check_ids, parse_prompt, parse_prompts, parse_text
from jaxpool.recipe import Recipe, read_recipe
from jaxpool.runner import Replica, Runner, Stats
from jaxpool.sharding import param_sharding, replica_meshes
from jaxpool.similarity import similarity
from jaxpool.tasks import ALL, embed_program, param_specs, resolve_task
from jaxpool.tokens import load_tokenizer
from jaxpool.vllm_arguments import check_vllm_arguments

DTYPES = {
    "float32": "float32",
    "float": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
}


Request = tuple[Parsed, Options]


@dataclass(frozen=True)
class _Reading:
    """How the texts of one call are read: put behind `prompt`, cut at `limit`, or refused if longer."""

    prompt: str
    limit: int
    cut: bool


class LLM:
    """An embedding engine over one checkpoint. Safe to call from several threads.

    Args:
        model: a directory, or a name on the Hugging Face hub (resolved as `hub.resolve` says).
        task: "embed" ("embedding", "auto").
        tokenizer: a directory or name to take the tokenizer from, if not the model's.
        dtype: "float32", "bfloat16", or "auto": float32 on CPU, bfloat16 on TPU and GPU.
        max_model_len: most tokens of a text, at most what the checkpoint allows.
        revision: branch, tag or commit on the hub.
        hf_token: for gated models.
        hf_overrides: attributes to put over config.json's.
        trust_remote_code: accepted for vLLM's sake; a checkpoint's own code is never run.
        tensor_parallel_size: only 1 so far.
        data_parallel_size: devices that share each batch's rows. Default: all chips; on CPU one stream a core.
        mesh: a mesh with a "data" axis, instead.
        pooler_config: a `PoolerConfig` or a dict of its fields, over the checkpoint's own.
        override_pooler_config: the older name of `pooler_config`.
        max_num_batched_tokens: tokens of a batch, padding included. Default: by platform and free memory.
        deterministic: the same text gives the same bits whatever shares its batch (one sequence a row, in a
            row whose shape depends on its own length alone), within one backend, jaxlib and dtype.
        compile_cache: a directory to keep compiled programs in, or True for the default one.
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
        task: str = "auto",
        tokenizer: str | os.PathLike[str] | None = None,
        dtype: str = "auto",
        max_model_len: int | None = None,
        revision: str | None = None,
        hf_token: str | None = None,
        hf_overrides: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        data_parallel_size: int | None = None,
        mesh: jax.sharding.Mesh | None = None,
        pooler_config: PoolerConfig | dict[str, Any] | None = None,
        override_pooler_config: PoolerConfig | dict[str, Any] | None = None,
        max_num_batched_tokens: int | None = None,
        deterministic: bool = False,
        compile_cache: bool | str | os.PathLike[str] = False,
        **vllm_arguments: Any,
    ) -> None:
        check_vllm_arguments(vllm_arguments)
        self.task = resolve_task(task)
        if tensor_parallel_size != 1:
            raise ValueError(
                f"tensor_parallel_size is {tensor_parallel_size}: sharding of weights is not there yet, only 1 works"
            )
        if pooler_config is not None and override_pooler_config is not None:
            raise ValueError("pooler_config and override_pooler_config are one setting: give only one")
        if trust_remote_code:
            once("trust_remote_code changes nothing: a checkpoint's own code is never run", level=20)
        use_compile_cache(compile_cache)
        directory = hub.resolve(model, revision, hf_token)
        pooling = PoolerConfig.of(pooler_config or override_pooler_config)
        self.recipe = _with_length(pooling.apply(read_recipe(directory, hf_overrides)), max_model_len)
        self.model = os.fspath(model)
        tokenizer_directory = (
            hub.resolve_tokenizer(tokenizer, hf_token) if tokenizer else self.recipe.backbone_directory
        )
        self._tokenizer = load_tokenizer(tokenizer_directory, lower_case=self.recipe.lower_case)
        if self._tokenizer.vocab_size > self.recipe.config.vocab_size:
            raise ValueError(
                f"{tokenizer_directory}: the tokenizer has {self._tokenizer.vocab_size} tokens, the model "
                f"{self.recipe.config.vocab_size} embeddings"
            )
        if self.recipe.max_length <= self._tokenizer.special_count:
            raise ValueError(
                f"max_model_len is {self.recipe.max_length}, expected more than the tokenizer's "
                f"{self._tokenizer.special_count} special tokens"
            )
        meshes = replica_meshes(data_parallel_size, mesh)
        device = meshes[0].devices.flat[0]
        self.dtype = resolve_dtype(dtype, device.platform)
        if max_num_batched_tokens is not None and max_num_batched_tokens < 1:
            raise ValueError(f"max_num_batched_tokens is {max_num_batched_tokens}, expected at least 1")
        ladder = memory.choose_ladder(
            self.recipe, self.dtype, meshes[0], budget=max_num_batched_tokens, packed=not deterministic
        )
        self._meshes = meshes
        self.stats = Stats()
        self._runner = self._start(meshes, ladder)
        self._tokenising = ThreadPoolExecutor(2, thread_name_prefix="jaxpool-tokenise")
        self._requests = 0
        self._lock = threading.Lock()

    def _start(self, meshes: list[jax.sharding.Mesh], ladder: Ladder) -> Runner:
        program = embed_program(self.recipe)
        params = load_to_mesh(self.recipe, meshes[0], self.dtype)
        specs = param_specs(self.recipe)
        replicas = []
        for mesh in meshes:
            shardings = jax.tree.map(lambda spec, mesh=mesh: param_sharding(spec, mesh), specs)
            replicas.append(Replica(mesh, jax.device_put(params, shardings), program, self.stats))
        return Runner(replicas, ladder, self.stats, per_token=self.recipe.pooling == ALL)

    def encode(
        self,
        prompts: Any,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: UseTqdm = True,
    ) -> list[PoolingRequestOutput]:
        """What the instance's pooler extracts from each prompt.

        Args:
            prompts: a text, a list of token ids, a dict (`prompt` or `prompt_token_ids`), or a list of these.
            pooling_params: options for all prompts, or one a prompt.
            truncate_prompt_tokens: cut longer prompts to so many tokens, −1 for the model's limit; None: a longer
                prompt is an error.
            use_tqdm: a progress bar, none, or something to call instead of tqdm.

        Returns:
            One output a prompt, in order; `.outputs.data` is float32 [D], or [T, D] with pooling "ALL".

        Raises:
            ValueError: something that is no prompt, too long, empty or out of vocabulary; the call gives nothing then.
        """
        parsed = parse_prompts(prompts)
        reading = self._reading(self._default_prompt(), truncate_prompt_tokens)
        options = [p.resolve(self.recipe, self.model) for p in spread(pooling_params, len(parsed))]
        outputs: list[PoolingRequestOutput | None] = [None] * len(parsed)
        first = self._reserve(len(parsed))
        for sequence, data in self._run(zip(parsed, options, strict=True), reading, use_tqdm, len(parsed)):
            for i in sequence.owners:
                vector = data[..., : sequence.dimensions].copy()
                outputs[i] = PoolingRequestOutput(str(first + i), PoolingOutput(vector), sequence.ids.tolist())
        return [output for output in outputs if output is not None]

    def embed(
        self,
        prompts: Any,
        *,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: UseTqdm = True,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """The embedding of each prompt as a list of floats. Arguments and errors as `encode`.

        Lists of floats are slow; `embed_array` gives one numpy array.
        """
        self._one_vector("embed")
        outputs = self.encode(prompts, pooling_params, truncate_prompt_tokens=truncate_prompt_tokens, use_tqdm=use_tqdm)
        return [EmbeddingRequestOutput.from_base(output) for output in outputs]

    def embed_array(
        self,
        texts: Any,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        use_tqdm: UseTqdm = False,
    ) -> np.ndarray:
        """The embeddings of all texts as one array. Longer texts are cut, as sentence-transformers does.

        Args:
            texts: a text or a list of texts (or of what else `encode` takes).
            prompt_name: of the checkpoint's prompts, to put in front of each text; None: its default prompt.
            prompt: a text to put in front, instead.
            use_tqdm: a progress bar, none, or something to call instead of tqdm.

        Returns:
            float32 [n, D]; [0, D] for an empty list. `stats.truncated` counts the texts that were cut.

        Raises:
            ValueError: something that is no text, an unknown `prompt_name`, or an instance that pools nothing.
        """
        self._one_vector("embed_array")
        parsed = [] if isinstance(texts, (list, tuple)) and not texts else parse_prompts(texts)
        reading = self._reading(self._prompt(prompt_name, prompt), -1)
        result = np.empty((len(parsed), self.recipe.embedding_size), np.float32)
        own = self._own_options()
        for sequence, vector in self._run(((p, own) for p in parsed), reading, use_tqdm, len(parsed)):
            result[list(sequence.owners)] = vector
        return result

    def embed_stream(
        self,
        texts: Iterable[Any],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        use_tqdm: UseTqdm = False,
    ) -> Iterator[np.ndarray]:
        """The embeddings of a stream of texts, in order, in bounded memory.

        Args:
            texts: any iterable; it is drawn from in the caller's thread, a few thousand texts ahead.
            prompt_name, prompt, use_tqdm: as in `embed_array`.

        Yields:
            float32 [D] a text.

        Raises:
            ValueError: as `embed_array`, when the text in question is drawn (up to a few thousand before its turn).
        """
        self._one_vector("embed_stream")
        if isinstance(texts, (str, bytes, Mapping)):
            raise ValueError(f"texts: expected an iterable of texts, got one {type(texts).__name__}")
        reading = self._reading(self._prompt(prompt_name, prompt), -1)
        own = self._own_options()
        parsed = ((parse_prompt(text, f"texts[{i}]"), own) for i, text in enumerate(texts))
        return self._in_order(parsed, reading, use_tqdm)

    def encode_query(self, texts: Any, *, use_tqdm: UseTqdm = False) -> np.ndarray:
        """`embed_array` with the checkpoint's "query" prompt, or none: sentence-transformers' `encode_query`."""
        return self.embed_array(texts, prompt=self.recipe.prompts.get("query", ""), use_tqdm=use_tqdm)

    def encode_document(self, texts: Any, *, use_tqdm: UseTqdm = False) -> np.ndarray:
        """`embed_array` with the checkpoint's "document" prompt, or none: sentence-transformers' `encode_document`."""
        return self.embed_array(texts, prompt=self.recipe.prompts.get("document", ""), use_tqdm=use_tqdm)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The checkpoint's own similarity of every row of `a` [n, D] with every row of `b` [m, D]: float32 [n, m]."""
        return similarity(self.recipe.similarity, a, b)

    def warmup(self) -> None:
        """Compiles and runs every shape, so that nothing compiles later (`stats.compilations` stands still)."""
        self._runner.warmup()

    def memory_plan(self) -> memory.MemoryPlan:
        """What each replica holds: weights and the largest batch's activations."""
        return memory.memory_plan(self.recipe, self.dtype, self._runner.ladder)

    def close(self) -> None:
        """Ends the engine's threads. Idempotent; later calls raise RuntimeError."""
        self._tokenising.shutdown(wait=False, cancel_futures=True)
        self._runner.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        devices = [str(device) for mesh in self._meshes for device in mesh.devices.flat]
        lines = {
            "model": self.model,
            **self.recipe.describe(),
            "dtype": str(self.dtype),
            "devices": ", ".join(devices) + (f" ({len(self._meshes)} replicas)" if len(self._meshes) > 1 else ""),
            **self.memory_plan().describe(),
        }
        return "LLM(\n" + "".join(f"  {name}: {value}\n" for name, value in lines.items()) + ")"

    def _default_prompt(self) -> str:
        return self.recipe.prompts[self.recipe.default_prompt] if self.recipe.default_prompt else ""

    def _prompt(self, prompt_name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return parse_text(prompt, "prompt")
        if prompt_name is None:
            return self._default_prompt()
        if prompt_name not in self.recipe.prompts:
            raise ValueError(f"prompt_name is {prompt_name!r}, expected one of {list(self.recipe.prompts)}")
        return self.recipe.prompts[prompt_name]

    def _reading(self, prompt: str, truncate: int | None) -> _Reading:
        longest = self.recipe.max_length
        if truncate is None:
            return _Reading(prompt, longest, cut=False)
        if not isinstance(truncate, int):
            raise ValueError(f"truncate_prompt_tokens is {truncate!r}, expected an int or None")
        if truncate > longest:
            raise ValueError(
                f"truncate_prompt_tokens value ({truncate}) is greater than max_model_len ({longest}). "
                "Please request a smaller truncation size."
            )
        if truncate == -1:
            return _Reading(prompt, longest, cut=True)
        if truncate <= self._tokenizer.special_count:
            raise ValueError(
                f"truncate_prompt_tokens is {truncate}, expected -1 or more than the "
                f"{self._tokenizer.special_count} special tokens"
            )
        return _Reading(prompt, truncate, cut=True)

    def _one_vector(self, method: str) -> None:
        if self.recipe.pooling == ALL:
            raise ValueError(f"{method}: this instance keeps every token's vector (pooling ALL); use encode")

    def _reserve(self, count: int) -> int:
        with self._lock:
            self._requests += count
            return self._requests - count

    def _run(
        self, requests: Iterable[Request], reading: _Reading, use_tqdm: UseTqdm, total: int | None
    ) -> Iterator[tuple[TokenSequence, np.ndarray]]:
        self._runner.check_open()
        skip = 0 if self.recipe.include_prompt or not reading.prompt else self._tokenizer.prompt_length(reading.prompt)
        work = ((start, window, reading, skip) for start, window in pipeline.windows(requests))
        progress = Progress(use_tqdm, total)
        try:
            with closing(pipeline.ahead(self._tokenising, self._tokenise, work)) as tokenised:
                for sequence, rows in pipeline.execute(tokenised, self._runner):
                    yield sequence, rows
                    progress.update(len(sequence.owners), len(sequence.ids))
        except CancelledError:
            raise RuntimeError("this LLM was closed while it worked on this call") from None
        finally:
            progress.close()

    def _in_order(self, requests: Iterable[Request], reading: _Reading, use_tqdm: UseTqdm) -> Iterator[np.ndarray]:
        waiting: dict[int, np.ndarray] = {}
        following = 0
        for sequence, rows in self._run(requests, reading, use_tqdm, None):
            waiting |= {owner: rows.copy() for owner in sequence.owners}
            while following in waiting:
                yield waiting.pop(following)
                following += 1

    def _tokenise(self, start: int, window: Sequence[Request], reading: _Reading, skip: int) -> list[TokenSequence]:
        """One window of requests -> sequences; a request that comes more than once is computed once."""
        owners: dict[tuple[str | bytes, Options], list[int]] = {}
        for i, (prompt, options) in enumerate(window):
            key = prompt if isinstance(prompt, str) else prompt.tobytes()
            owners.setdefault((key, options), []).append(start + i)
        texts = list(dict.fromkeys(text for text, _ in owners if isinstance(text, str)))
        prompted = self._tokenizer.encode([reading.prompt + text for text in texts], reading.limit)
        encoded = dict(zip(texts, prompted, strict=True))
        sequences = []
        for (item, options), numbers in owners.items():
            name = f"prompts[{numbers[0]}]"
            if isinstance(item, str):
                ids, total = encoded[item].ids, encoded[item].total
            else:
                whole = check_ids(np.frombuffer(item, np.int32), self.recipe.config.vocab_size, name)
                ids, total = self._tokenizer.cut_ids(whole, reading.limit), len(whole)
            if total > len(ids) and not reading.cut:
                raise ValueError(
                    f"{name}: This model's maximum context length is {reading.limit} tokens. However, your prompt "
                    f"contains at least {total} input tokens. Please reduce the length of the input prompt, or pass "
                    "truncate_prompt_tokens=-1."
                )
            if len(ids) == 0:
                raise ValueError(f"{name}: the text has no tokens, and this model's tokenizer adds none")
            own_skip = min(skip, len(ids) - 1) if isinstance(item, str) else 0
            sequences.append(
                TokenSequence(
                    ids,
                    tuple(numbers),
                    truncated=total > len(ids),
                    skip=own_skip,
                    dimensions=options.dimensions,
                    activate=options.activate,
                )
            )
        return sequences

    def _own_options(self) -> Options:
        return PoolingParams().resolve(self.recipe, self.model)


def _with_length(recipe: Recipe, max_model_len: int | None) -> Recipe:
    if max_model_len is None:
        return recipe
    if not 1 <= max_model_len <= recipe.max_length:
        raise ValueError(
            f"max_model_len is {max_model_len}, expected 1 … {recipe.max_length}, which the checkpoint's files allow"
        )
    return replace(recipe, max_length=max_model_len)


def resolve_dtype(dtype: str, platform: str) -> np.dtype:
    """The compute dtype that a user's name for it means on a platform.

    Raises:
        ValueError: no such name.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        name = "float32" if platform == "cpu" else "bfloat16"
    if name not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {['auto', *DTYPES]}")
    return jax.numpy.dtype(DTYPES[name])
