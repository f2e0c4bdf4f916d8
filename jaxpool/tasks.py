"""What an instance can be asked for: the tasks' names, old and new, and which one a model's own say leads to."""

from __future__ import annotations

from collections.abc import Collection

EMBED, TOKEN_EMBED, CLASSIFY, TOKEN_CLASSIFY = "embed", "token_embed", "classify", "token_classify"
TASKS = (EMBED, TOKEN_EMBED, CLASSIFY, TOKEN_CLASSIFY)
PER_TOKEN = frozenset({TOKEN_EMBED, TOKEN_CLASSIFY})
# The tasks that the same head serves: one answer a text, or one a token.
PAIRS = {EMBED: TOKEN_EMBED, CLASSIFY: TOKEN_CLASSIFY}
SIBLINGS = PAIRS | {token: text for text, token in PAIRS.items()}

AUTO, SCORE, REWARD, ENCODE = "auto", "score", "reward", "encode"
# Names of vLLM's other versions. "score" and "encode" mean one or the other by the model.
ALIASES = {"embedding": EMBED, REWARD: TOKEN_CLASSIFY}
NAMES = (AUTO, "embedding", SCORE, REWARD, *TASKS)

_RUNNERS = ("auto", "pooling")
_CONVERT = {"auto": None, "none": None, "embed": EMBED, "classify": CLASSIFY, "reward": TOKEN_CLASSIFY}


def asked_task(task: str, runner: str, convert: str) -> str:
    """What a user's `task`, `runner` and `convert` come to: "auto", "score", or one of `TASKS`.

    Raises:
        ValueError: an unknown name, or `task` and `convert` that contradict each other.
    """
    if runner not in _RUNNERS:
        raise ValueError(f"runner is {runner!r}, expected one of {_RUNNERS}: jaxpool has pooling models only")
    if convert not in _CONVERT:
        raise ValueError(f"convert is {convert!r}, expected one of {tuple(_CONVERT)}")
    if task not in NAMES:
        raise ValueError(f"Unsupported task: {task!r} Supported tasks: {NAMES}")
    name, converted = ALIASES.get(task, task), _CONVERT[convert]
    if converted is None or (name == SCORE and converted in (EMBED, CLASSIFY)):
        return converted or name
    if name not in (AUTO, converted, SIBLINGS[converted]):
        raise ValueError(f"task {task!r} and convert {convert!r} contradict each other: give only one")
    return converted if name == AUTO else name


def pooling_task(name: str | None, default: str, supported: Collection[str]) -> str:
    """The task that `encode(pooling_task=name)` means on an instance.

    Args:
        name: as users give it; None for the instance's own; "encode" for what answers with every token.
        default: the instance's own task.
        supported: what its model can answer.

    Raises:
        ValueError: no task of that name, or not for this model; the words are vLLM's.
    """
    if name is None:
        return default
    task = ALIASES.get(name, name)
    if task == ENCODE:
        task = PAIRS.get(default, default)
    if task == SCORE:
        raise ValueError("`score` is no task of encode; use LLM.score, or `classify`")
    if task not in supported:
        raise ValueError(f"Unsupported task: {name!r} Supported tasks: {tuple(supported)}")
    return task
