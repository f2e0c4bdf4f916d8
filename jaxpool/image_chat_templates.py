"""How families that see are shown pictures in a prompt: their placeholders, and the templates of those without one.

A checkpoint's own chat template, or the user's, goes before the ones here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from jaxpool.chat_templates import render_messages
from jaxpool.prompts import Part

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Style:
    """One family's.

    Attributes:
        template: the name of its template in `templates/`.
        placeholder: number of a picture (1, 2, …) -> what stands for it in a prompt; None where pictures stand in none.
    """

    template: str
    placeholder: Callable[[int], str] | None = None


# By the family's name.
STYLES: Mapping[str, Style] = {
    "clip": Style("plain"),
    "siglip": Style("plain"),
    "qwen2_vl": Style("dse_qwen2_vl", lambda number: "<|vision_start|><|image_pad|><|vision_end|>"),
    "llava_next": Style("e5_v", lambda number: "<image>"),
    "phi3_v": Style("vlm2vec_phi3v", lambda number: f"<|image_{number}|>"),
}


@cache
def own_template(name: str) -> str | None:
    """A template of `templates/` that is a family's here; None for other names."""
    if name not in {style.template for style in STYLES.values()}:
        return None
    return (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def default_template(family: str) -> str | None:
    """The chat template of a family's checkpoints that have none."""
    return own_template(STYLES[family].template) if family in STYLES else None


def with_placeholders(family: str, parts: Sequence[Part], first: int, between: str, joint: str) -> str:
    """A content as one text. Placeholders that its texts do not have stand in front, as vLLM puts them.

    Args:
        family: by name.
        parts: texts and pictures.
        first: the number of the first picture, from 1.
        between: what stands between two texts.
        joint: what stands behind each placeholder.

    Raises:
        ValueError: a family whose placeholder is not known.
    """
    text = between.join(part for part in parts if isinstance(part, str))
    pictures = sum(not isinstance(part, str) for part in parts)
    if not pictures:
        return text
    placeholder = STYLES[family].placeholder if family in STYLES else None
    if placeholder is None:
        raise ValueError(f"pictures in the texts of family {family!r} have no placeholder")
    wanted = Counter(placeholder(first + i) for i in range(pictures))
    missing = list((wanted - Counter({word: text.count(word) for word in wanted})).elements())
    return joint.join([*missing, text] if text else missing)


@lru_cache(maxsize=64)
def takes_parts(template: str) -> bool:
    """Whether a chat template writes contents that are lists of parts, pictures among them; others take texts."""
    word = "jaxpool-part"
    text: dict[str, Any] = {"type": "text", "text": word}
    try:
        with_picture, without = (
            render_messages(template, [{"role": "user", "content": content}])
            for content in ([{"type": "image"}, text], [text])
        )
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return False  # it says what is wrong when it gets the messages themselves
    return with_picture.count(word) == 1 and "'type'" not in with_picture and with_picture != without
