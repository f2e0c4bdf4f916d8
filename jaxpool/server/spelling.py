"""How `vllm serve`'s command lines are written: words, and the values in them."""

from __future__ import annotations

import json
import re
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxpool.vllm_arguments import ARGUMENTS, FLAG

Kind = TypeVar("Kind")
# Of short flags those that take an object: -iin.jsonl is none.
_DOTTED = re.compile(r"(--[A-Za-z][\w-]*|-[acs]c)\.(.+)")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])")
# Behind a flag, as older versions write it: --enable-chunked-prefill False.
_TRUTH = {"true": "--", "false": "--no-"}


def as_argparse(argv: Sequence[str]) -> list[str]:
    """A command line in words that argparse takes.

    `--hf_overrides` → `--hf-overrides`; `--pooler-config.pooling_type MEAN` → `--pooler-config '{"pooling_type":
    "MEAN"}'`, behind the others and one object of all that are dotted; `--enforce-eager=False` → `--no-enforce-eager`.
    """
    found: list[str] = []
    objects: dict[str, dict[str, Any]] = {}
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if dotted := _DOTTED.fullmatch(name):
            given = value if equals else next(words, None)
            if given is None:
                found.append(word)  # argparse says what is wrong with it
                continue
            _merge(objects.setdefault(_in_dashes(dotted[1]), {}), _nested(dotted[2].split("."), given))
        elif equals and value.lower() in _TRUTH and _is_flag(name):
            found.append(_TRUTH[value.lower()] + _in_dashes(name)[2:])
        elif word.lower() in _TRUTH and found and _is_flag(found[-1]):
            found[-1] = _TRUTH[word.lower()] + found[-1][2:]
        else:
            found.append(_in_dashes(name) + equals + value)
    return [*found, *_objects(objects)]


def json_or_text(text: str) -> Any:
    """A value of any kind: JSON, or a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def text_or_none(text: str) -> str | None:
    """A text; "" and "None" are vLLM's words for nothing."""
    return None if text in ("", "None") else text


def whole_number(text: str) -> int:
    """8192, 8k (8000), 8K (8192), 1.5k; also m, g, t.

    Raises:
        argparse.ArgumentTypeError: no whole number.
    """
    number, suffix = text.strip(), ""
    if found := _NUMBER.fullmatch(number):
        number, suffix = found.groups()
    power = " kmgt".index(suffix.lower() or " ")
    try:
        return int(float(number) * 1000**power) if suffix.islower() else int(number) * 1024**power
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no whole number such as 8192, 8k (8000) or 8K (8192)") from None


def whole_number_or_auto(text: str) -> int | None:
    """As `whole_number`; None for "auto" and -1."""
    return None if text.strip().lower() in ("auto", "-1") else whole_number(text)


def json_list(text: str) -> list[Any]:
    """A list in JSON."""
    return _json(text, list)


def json_object(text: str) -> dict[str, Any]:
    """An object in JSON, or the name of a .json file of one.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    try:
        source = Path(text).read_text(encoding="utf-8") if text.endswith(".json") else text
    except OSError as error:
        raise ArgumentTypeError(f"{text}: {error.strerror}") from None
    return _json(source, dict)


def counts(text: str) -> dict[str, Any]:
    """A `json_object`, or in the older form: image=4,video=0."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(equals and count.strip().isdecimal() for _, equals, count in pairs):
        return json_object(text)
    return {name.strip().lower(): int(count) for name, _, count in pairs}


def _json(text: str, kind: type[Kind]) -> Kind:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArgumentTypeError(f"no JSON: {error}") from None
    if not isinstance(found, kind):
        raise ArgumentTypeError(f"expected a JSON {'list' if kind is list else 'object'}, got {text!r}")
    return found


def _in_dashes(name: str) -> str:
    return name.replace("_", "-") if name.startswith("--") else name


def _is_flag(name: str) -> bool:
    argument = ARGUMENTS.get(name.removeprefix("--").replace("-", "_"))
    return name.startswith("--") and argument is not None and argument.form == FLAG


def _nested(keys: Sequence[str], text: str) -> dict[str, Any]:
    """`a.b` and 1 → {"a": {"b": 1}}; `a+` and "x,y" → {"a": ["x", "y"]}."""
    last = keys[-1].removesuffix("+")
    value: Any = json_or_text(text) if last == keys[-1] else [json_or_text(part) for part in text.split(",")]
    for key in (last, *reversed(keys[:-1])):
        value = {key: value}
    return value


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Puts an object over another; the lists of both are joined."""
    for key, value in more.items():
        old = into.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value)
        elif isinstance(value, list) and isinstance(old, list):
            old += value
        else:
            into[key] = value


def _objects(objects: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, value in objects.items():
        yield from (name, json.dumps(value))
