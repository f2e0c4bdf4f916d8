"""Random requests of every task and option after warm-up: whether anything compiles.

python -m benchmarks.random_requests [--requests 100000] [--seed 0]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from benchmarks.compilations import Compilations
from benchmarks.random_texts import Choices, Texts
from jaxpool import LLM
from tests.test_examples import DECODER, write_model
from tests.tiny import JINA_TASKS, tiny_bert, tiny_classifier, tiny_clip, tiny_jina

STEP = "<extra_0>"
Kind = Callable[[LLM, Texts, int], object]
"""One call with so many requests."""


def _encode(task: str | None) -> Kind:
    return lambda llm, texts, count: llm.encode(**texts.call(count), pooling_task=task)


def _array(llm: LLM, texts: Texts, count: int) -> None:
    llm.embed_array(texts.prompts(count), **_prompt(llm, texts), pooling_params=texts.params())


def _stream(llm: LLM, texts: Texts, count: int) -> None:
    stream = llm.embed_stream(iter(texts.prompts(count)), **_prompt(llm, texts), pooling_params=texts.params())
    assert sum(1 for _ in stream) == count


def _prompt(llm: LLM, texts: Texts) -> dict[str, Any]:
    names = [{"prompt_name": name} for name in llm.recipe.prompts]
    return texts.random.choice([{}, {"prompt": texts.text(16)}, *names])


def _score(llm: LLM, texts: Texts, count: int) -> None:
    firsts = [texts.text() for _ in range(texts.random.choice((1, count)))]
    seconds = [texts.text() for _ in range(count)]
    llm.score(firsts, seconds, **texts.cut(), pooling_params=texts.each(count), use_tqdm=False)


def _rerank(llm: LLM, texts: Texts, count: int) -> None:
    top = texts.random.choice((None, 1, count))
    llm.rerank(texts.text(), [texts.text() for _ in range(count)], top)


def _written_score(llm: LLM, texts: Texts, count: int) -> None:
    """A template's own words must fit: queries are short, and what is cut are documents."""
    pairs = texts.text(40), [texts.text() for _ in range(count)]
    llm.score(*pairs, truncate_prompt_tokens=-1, pooling_params=texts.each(count), use_tqdm=False, **_said(texts))


def _written_rerank(llm: LLM, texts: Texts, count: int) -> None:
    llm.rerank(texts.text(40), [texts.text() for _ in range(count)], **_said(texts))


def _said(texts: Texts) -> dict[str, Any]:
    return texts.random.choice(({}, {"instruction": texts.text(40)}))


def _seen(llm: LLM, texts: Texts, count: int) -> None:
    """Pictures among texts, all in one call."""
    prompts = [texts.random.choice((_picture, Texts.text))(texts) for _ in range(count)]
    llm.embed(prompts, truncate_prompt_tokens=-1, pooling_params=texts.each(count), use_tqdm=False)


def _seen_stream(llm: LLM, texts: Texts, count: int) -> None:
    stream = llm.embed_stream((_picture(texts) for _ in range(count)), pooling_params=texts.params())
    assert sum(1 for _ in stream) == count


def _picture(texts: Texts) -> Image.Image:
    sides = texts.random.randint(1, 99), texts.random.randint(1, 99)
    return Image.new("RGB", sides, texts.random.randrange(2**24))


EMBEDDING: dict[str, Kind] = {
    "encode": _encode(None),
    "embed": lambda llm, texts, count: llm.embed(**texts.call(count)),
    "embed_array": _array,
    "embed_stream": _stream,
    "encode_query": lambda llm, texts, count: llm.encode_query(texts.prompts(count)),
    "encode_document": lambda llm, texts, count: llm.encode_document(texts.prompts(count)),
    "token_embed": _encode("token_embed"),
    "score, of cosines": _score,
    "rerank, by cosines": _rerank,
}
SEEING: dict[str, Kind] = {"embed, pictures too": _seen, "embed_stream, pictures": _seen_stream}
CLASSIFYING: dict[str, Kind] = {
    "encode": _encode(None),
    "classify": lambda llm, texts, count: llm.classify(**texts.call(count)),
    "token_classify": _encode("token_classify"),
}
REWARDING: dict[str, Kind] = {
    "encode": _encode(None),
    "reward": lambda llm, texts, count: llm.reward(**texts.call(count)),
    "token_classify": _encode("token_classify"),
}
CUTS = {"truncate_prompt_tokens": (None, None, None, -1, 5, 17)}
FLAGS = (None, True, False)
OF_EMBEDDINGS: Choices = {"normalize": FLAGS, "use_activation": FLAGS, **CUTS}
OF_CLASSIFIERS: Choices = {"softmax": FLAGS, "activation": FLAGS, "use_activation": FLAGS, **CUTS}


@dataclass(frozen=True)
class Instance:
    """A tiny model, how it is opened, and what it can be asked.

    Attributes:
        write: writes it somewhere in a directory, and says where.
        kinds: of requests.
        options: of `PoolingParams`.
        settings: of `LLM`.
        end: what texts end their parts with.
    """

    write: Callable[[Path], Path]
    kinds: Mapping[str, Kind]
    options: Choices
    settings: Mapping[str, Any] = field(default_factory=dict)
    end: str = ""


def _embedder(directory: Path) -> Path:
    return tiny_bert(directory, prompts={"query": "query: ", "document": "document: "})


def _process_reward(directory: Path) -> Path:
    sizes = DECODER | {"max_position_embeddings": 128}
    return write_model(directory / "tiny", "Qwen2ForProcessRewardModel", "qwen2", (STEP,), **sizes)


def _reranker(directory: Path) -> Path:
    sizes = DECODER | {"max_position_embeddings": 640, "tie_word_embeddings": True, "head_dim": 4}
    # That it reranks is known by its name.
    return write_model(directory / "Qwen3-Reranker-tiny", "Qwen3ForCausalLM", "qwen3", ("yes", "no"), **sizes)


_MATRYOSHKA = {"hf_overrides": {"matryoshka_dimensions": [8, 16, 32]}}
_DIMENSIONS = {"dimensions": (None, 8, 16, 32)}
# The step's token stands behind the 256 bytes; another one is as good a tag.
_STEPS = {"pooling_type": "STEP", "step_tag_id": 256}
INSTANCES: Mapping[str, Instance] = {
    "embedder": Instance(_embedder, EMBEDDING, OF_EMBEDDINGS | _DIMENSIONS, _MATRYOSHKA),
    "embedder, deterministic": Instance(
        _embedder, EMBEDDING, OF_EMBEDDINGS | _DIMENSIONS, _MATRYOSHKA | {"deterministic": True}
    ),
    "embedder, longer texts in parts": Instance(
        _embedder,
        EMBEDDING,
        OF_EMBEDDINGS | _DIMENSIONS,
        _MATRYOSHKA | {"pooler_config": {"enable_chunked_processing": True}},
    ),
    "embedder, 8 bits": Instance(
        _embedder, EMBEDDING, OF_EMBEDDINGS | _DIMENSIONS, _MATRYOSHKA | {"quantization": "int8"}
    ),
    "embedder, bfloat16": Instance(
        _embedder, EMBEDDING, OF_EMBEDDINGS | _DIMENSIONS, _MATRYOSHKA | {"dtype": "bfloat16"}
    ),
    "embedder of pictures": Instance(tiny_clip, {"embed": EMBEDDING["embed"], **SEEING}, OF_EMBEDDINGS),
    "embedder with adapters": Instance(
        tiny_jina, EMBEDDING, OF_EMBEDDINGS | {"dimensions": (None, 12, 36), "adapter": (None, "none", *JINA_TASKS)}
    ),
    "classifier": Instance(lambda directory: tiny_classifier(directory, labels=3), CLASSIFYING, OF_CLASSIFIERS),
    "cross-encoder": Instance(
        lambda directory: tiny_classifier(directory, labels=1),
        CLASSIFYING | {"score": _score, "rerank": _rerank},
        OF_CLASSIFIERS,
        {"task": "score"},
    ),
    "reranking language model": Instance(
        _reranker,
        {"score": _written_score, "rerank": _written_rerank},
        {name: OF_CLASSIFIERS[name] for name in ("activation", "use_activation")},
        {"task": "score"},
    ),
    "process reward model": Instance(
        _process_reward,
        REWARDING,
        OF_CLASSIFIERS | {"step_tag_id": (None, 97, 256)},
        {"task": "reward", "pooler_config": _STEPS},
        end=STEP,
    ),
}


class Outcome(NamedTuple):
    """What one instance did.

    Attributes:
        kinds: requests by kind.
        calls: they came in.
        programs: the engine's count behind warm-up, and at the end.
        compiled: JAX's own, likewise.
        origins: what JAX compiled after warm-up, for whom.
    """

    name: str
    tasks: tuple[str, ...]
    kinds: Counter[str]
    calls: int
    seconds: float
    programs: tuple[int, int]
    compiled: tuple[int, int]
    origins: Counter[str]

    @property
    def stood_still(self) -> bool:
        """Whether nothing compiled."""
        return self.programs[0] == self.programs[1] and self.compiled[0] == self.compiled[1]


def send(name: str, requests: int, seed: int = 0, **settings: Any) -> Outcome:
    """Warms an instance up for all of its tasks, and sends it requests in calls of random size.

    Args:
        settings: of `LLM`, over the instance's.
    """
    own = INSTANCES[name]
    kinds: Counter[str] = Counter()
    calls = 0
    with (
        tempfile.TemporaryDirectory() as scratch,
        Compilations() as heard,
        LLM(own.write(Path(scratch)), **{**own.settings, **settings}) as llm,
    ):
        tasks = llm.supported_tasks
        llm.warmup(*tasks)
        programs, before = llm.stats.compilations, heard.found.copy()
        texts, start = Texts(llm, own.options, seed, own.end), time.perf_counter()
        while (left := requests - kinds.total()) > 0:
            kind = texts.random.choice(list(own.kinds))
            count = texts.size(left)
            own.kinds[kind](llm, texts, count)
            kinds[kind] += count
            calls += 1
        seconds = time.perf_counter() - start
        counts = (programs, llm.stats.compilations), (before.total(), heard.found.total())
    return Outcome(name, tasks, kinds, calls, seconds, *counts, heard.found - before)


def lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Tables by instance and by kind, then what was compiled."""
    yield "| instance | tasks | requests | calls | seconds | programs, before → after | JAX's own count |"
    yield "|---" * 7 + "|"
    for o in outcomes:
        counts = (f"{before} → {after}" for before, after in (o.programs, o.compiled))
        yield f"| {o.name} | {', '.join(o.tasks)} | {o.kinds.total():,} | {o.calls:,} | {o.seconds:.0f} | " + (
            " | ".join(counts) + " |"
        )
    kinds = sum((o.kinds for o in outcomes), Counter[str]())
    more = [sum(b - a for a, b in counts) for counts in zip(*((o.programs, o.compiled) for o in outcomes), strict=True)]
    seconds, calls = sum(o.seconds for o in outcomes), sum(o.calls for o in outcomes)
    yield f"| together | | {kinds.total():,} | {calls:,} | {seconds:.0f} | +{more[0]} | +{more[1]} |"
    yield "\n| kind | requests |\n|---|---|"
    yield from (f"| {kind} | {count:,} |" for kind, count in kinds.most_common())
    for outcome in outcomes:
        yield from (f"\n{outcome.name}: compiled {count} × {what}" for what, count in outcome.origins.items())


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 1 if anything compiled."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_requests", description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000, help="over all instances (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--instances", nargs="+", choices=INSTANCES, default=list(INSTANCES), metavar="NAME")
    options = parser.parse_args(argv)
    names, outcomes = options.instances, []
    for i, name in enumerate(names):
        share = options.requests // len(names) + (i < options.requests % len(names))
        outcomes.append(send(name, share, options.seed + i))
    print("\n".join(lines(outcomes)), flush=True)
    return int(not all(outcome.stood_still for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
