"""The forms that a prompt may come in, brought to one: text, or token ids, with pictures or without."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Prompt = str | Sequence[int] | Mapping[str, Any]


class Pair(NamedTuple):
    """Two texts that the tokenizer puts together, as a cross-encoder reads them."""

    first: str
    second: str


class TypedIds(NamedTuple):
    """Token ids with token types: int32 [length] as bytes, and how many at the end are of type 1."""

    ids: bytes
    second: int


@dataclass(frozen=True)
class Written:
    """A prompt that a template made of a document, which may be cut if the prompt is too long.

    Attributes:
        text: the prompt.
        document: the text in it that may be cut.
        write: document -> prompt.
    """

    text: str
    document: str
    write: Callable[[str], str] = field(compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Shown:
    """A prompt with pictures. Two of them are never the same: nobody looks whether two pictures are.

    Attributes:
        prompt: its text, in which the family's placeholder stands for each picture, or its token ids.
        pictures: as they were given: whatever `images.opening` opens.
        options: vLLM's `mm_processor_kwargs`.
        name: how errors call it.
        names: how they call each picture.
    """

    prompt: str | TypedIds
    pictures: tuple[Any, ...]
    options: Mapping[str, Any]
    name: str
    names: tuple[str, ...]


Parsed = str | Pair | Written | TypedIds | Shown
"""One prompt, as it can be compared with others."""

# A part of a content: a text, or a picture as `images.opening` opens it (which a text is not).
Part = str | Any


# Of vLLM's prompts; they set how it computes, never what.
_NO_SAY = ("cache_salt", "multi_modal_uuids")


def parse_prompts(prompts: Any) -> list[Parsed]:
    """One prompt or a list of them -> a list of texts and token ids.

    Takes `str`, a list of token ids, `{"prompt": str}`, `{"prompt_token_ids": [int]}` (with `token_type_ids` if it is
    a pair), each with `multi_modal_data` {"image": a picture or a list of them} if it has pictures, a picture alone
    (`PIL.Image.Image`), or a list of these.

    Raises:
        ValueError: nothing given, or something that is no prompt; the message names its place and type.
    """
    if isinstance(prompts, (str, Mapping, Shown)) or _is_ids(prompts) or is_picture(prompts):
        return [parse_prompt(prompts, "prompts")]
    if isinstance(prompts, np.ndarray) and prompts.ndim == 1 and prompts.dtype.kind in "UO":
        prompts = prompts.tolist()
    if not isinstance(prompts, (list, tuple)):
        raise ValueError(f"prompts: expected a text, token ids, a dict or a list of these, got {_kind(prompts)}")
    if not prompts:
        raise ValueError("You must pass at least one prompt")
    return [parse_prompt(prompt, f"prompts[{i}]") for i, prompt in enumerate(prompts)]


def parse_prompt(prompt: Any, name: str) -> Parsed:
    """One prompt -> text or token ids; `name` is how errors call it."""
    if isinstance(prompt, str):
        return parse_text(prompt, name)
    if isinstance(prompt, Shown):
        return prompt
    if isinstance(prompt, Mapping):
        return _parse_dict(prompt, name)
    if is_picture(prompt):
        return Shown("", (prompt,), {}, name, (name,))
    if _is_ids(prompt):
        return _ids(prompt)
    if isinstance(prompt, (list, tuple, np.ndarray)) and len(prompt) == 0:
        raise ValueError(f"{name}: token ids are empty, expected at least one")
    raise ValueError(f"{name}: expected a text, token ids or a dict, got {_kind(prompt)}")


def parse_text(text: Any, name: str) -> str:
    """A text that can be encoded.

    Raises:
        ValueError: not a `str`, or one with a lone surrogate (not valid Unicode; its place is named).
    """
    if not isinstance(text, str):
        raise ValueError(f"{name}: expected a text, got {_kind(text)}")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name}: not valid Unicode: lone surrogate {text[error.start]!r} at character {error.start}"
            ) from None
    return text


def parse_content(content: Any, name: str) -> list[Part]:
    """A message's content -> its texts and pictures, in order.

    Takes a text, or a list of parts: {"type": "text", "text": …}, {"type": "image_url", "image_url": {"url": …}} (or
    the URL alone; it is a data: URL: others are opened before, by whoever may reach them), and {"type": "image_pil",
    "image_pil": an image of PIL's}.

    Args:
        content: as it was given.
        name: how errors call it, for instance "messages[0].content".

    Raises:
        ValueError: something else; the part is named.
    """
    if isinstance(content, str):
        return [parse_text(content, name)]
    if not isinstance(content, Sequence):
        raise ValueError(f"{name}: `content` has to be a text or a list of parts, got {_kind(content)}")
    return [_parse_part(part, f"{name}[{i}]") for i, part in enumerate(content)]


def show(prompt: str, contents: Mapping[str, Sequence[Part]], options: Mapping[str, Any], name: str) -> Shown:
    """A prompt with the pictures of contents.

    Args:
        prompt: its text.
        contents: their parts, by their names.
        options: vLLM's `mm_processor_kwargs`.
        name: how errors call it.
    """
    found = {
        f"{own}[{i}]": part
        for own, parts in contents.items()
        for i, part in enumerate(parts)
        if not isinstance(part, str)
    }
    return Shown(prompt, tuple(found.values()), options, name, tuple(found))


def kind_of(part: Any) -> str | None:
    """The `type` of a content's part; None for what has none."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    return kind if isinstance(kind, str) else None


def picture_url(part: Mapping[str, Any], name: str) -> str:
    """The URL of a part of type "image_url". Raises ValueError."""
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, Mapping) else given
    if not isinstance(url, str):
        raise ValueError(f"{name}: expected {{'image_url': {{'url': …}}}}, got {_kind(given)}")
    return url


def is_picture(value: Any) -> bool:
    """Whether it is an image of PIL's."""
    # By name: pillow is not imported for those who only read.
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(value).__mro__)


def check_ids(ids: np.ndarray, vocab_size: int, name: str) -> np.ndarray:
    """Refuses ids that the model has no row for (a gather would silently take another).

    Raises:
        ValueError: an id below 0 or not below `vocab_size`.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise ValueError(f"{name}: Token id {wrong} is out of vocabulary (0 … {vocab_size - 1})")
    return ids


def _parse_dict(prompt: Mapping[str, Any], name: str) -> Parsed:
    known = {"prompt", "prompt_token_ids"}
    given = {key: value for key, value in prompt.items() if key not in _NO_SAY}
    pictures = _pictures(given.pop("multi_modal_data", None), name)
    options = given.pop("mm_processor_kwargs", None) or {}
    if unknown := sorted(set(map(str, given)) - known - {"token_type_ids"}):
        raise ValueError(f"{name}: keys {unknown} are not supported, expected one of {sorted(known)}")
    types = given.pop("token_type_ids", None)
    if pictures and not given:
        given = {"prompt": ""}
    if len(given) != 1 or (types is not None and ("prompt" in given or pictures)):
        raise ValueError(f"{name}: expected exactly one of {sorted(known)}, got {sorted(map(str, prompt))}")
    parsed = _parse_rest(given, types, name)
    if not pictures:
        return parsed
    place = f"{name}['multi_modal_data']['image']"
    names = [f"{place}[{i}]" for i in range(len(pictures))] if len(pictures) > 1 else [place]
    return Shown(parsed, pictures, options, name, tuple(names))


def _parse_rest(given: Mapping[str, Any], types: Any, name: str) -> str | TypedIds:
    if "prompt" in given:
        return parse_text(given["prompt"], f"{name}['prompt']")
    ids = given["prompt_token_ids"]
    if not _is_ids(ids):
        raise ValueError(f"{name}['prompt_token_ids']: expected a list of at least one int, got {_kind(ids)}")
    return _ids(ids) if types is None else _typed_ids(ids, types, name)


def _pictures(data: Any, name: str) -> tuple[Any, ...]:
    if data is None:
        return ()
    if not isinstance(data, Mapping) or set(data) - {"image"}:
        raise ValueError(f"{name}['multi_modal_data']: expected {{'image': …}}, got {_kind(data)}")
    given = data.get("image")
    if given is None:
        return ()
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


def _parse_part(part: Any, name: str) -> Part:
    read = _PARTS.get(kind_of(part) or "")
    if read is None:
        raise ValueError(f"{name}: parts of type {kind_of(part)!r} are not supported, expected one of {list(_PARTS)}")
    return read(part, name)


def _linked(part: Mapping[str, Any], name: str) -> bytes:
    from jaxpool.images.fetching import Fetching, read_url
    from jaxpool.images.opening import Limits

    url = picture_url(part, name)
    if url[:5].lower() != "data:":
        raise ValueError(f"{name}: only data: URLs are read here; open other pictures and give images of PIL's")
    return read_url(url, Fetching(frozenset(), None, Limits().bytes), name)


def _image(part: Mapping[str, Any], name: str) -> Any:
    image = part.get("image_pil")
    if not is_picture(image):
        raise ValueError(f"{name}: expected {{'image_pil': an image of PIL's}}, got {_kind(image)}")
    return image


# Types of parts -> what reads one.
_PARTS: Mapping[str, Callable[[Mapping[str, Any], str], Part]] = {
    "text": lambda part, name: parse_text(part.get("text"), name),
    "image_url": _linked,
    "image_pil": _image,
}


def _ids(ids: Any) -> TypedIds:
    return TypedIds(np.asarray(ids, np.int32).tobytes(), 0)


def _typed_ids(ids: Any, types: Any, name: str) -> TypedIds:
    if not _is_ids(types) or len(types) != len(ids):
        raise ValueError(f"{name}['token_type_ids']: expected {len(ids)} ints, one a token, got {_kind(types)}")
    second = sum(map(int, types))
    if [0] * (len(ids) - second) + [1] * second != list(map(int, types)):
        raise ValueError(f"{name}['token_type_ids']: expected zeros, then ones")
    return _ids(ids)._replace(second=second)


def _is_ids(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        if value.ndim != 1 or value.size == 0 or not np.issubdtype(value.dtype, np.integer):
            return False
        return bool(value.min() >= -(2**31) and value.max() < 2**31)  # wider ones would wrap to other tokens
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(i, numbers.Integral) and not isinstance(i, bool) for i in value)
        and all(-(2**31) <= i < 2**31 for i in value)
    )


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of " + (", ".join(sorted({type(v).__name__ for v in value})) or "nothing")
    return f"{type(value).__name__} {value!r:.60}"
