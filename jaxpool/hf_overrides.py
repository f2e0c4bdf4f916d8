"""vLLM's `hf_overrides`: what a user puts over config.json, as a dict or as a function from config to config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any


class ConfigView(SimpleNamespace):
    """config.json with attributes, as the functions that vLLM's users write expect it.

    It holds what the file holds and nothing else: defaults of transformers' classes are not filled in.
    """

    def update(self, values: Mapping[str, Any]) -> None:
        """Sets several attributes."""
        self.__dict__.update(values)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or `default`."""
        return self.__dict__.get(name, default)

    def to_dict(self) -> dict[str, Any]:
        """The attributes as a dict."""
        return dict(self.__dict__)


HFOverrides = Mapping[str, Any] | Callable[[ConfigView], ConfigView]


def override(hf: Mapping[str, Any], overrides: HFOverrides | None) -> dict[str, Any]:
    """config.json with the overrides over it; an attribute that is set to None is dropped.

    Raises:
        ValueError: neither a dict nor a function, or a function that gives no config back.
    """
    if overrides is None:
        return dict(hf)
    if isinstance(overrides, Mapping):
        return {**hf, **overrides}
    if not callable(overrides):
        raise ValueError(f"hf_overrides is {overrides!r:.60}, expected a dict or a function from config to config")
    changed = overrides(ConfigView(**hf))
    if not isinstance(changed, ConfigView):
        raise ValueError(f"hf_overrides gave a {type(changed).__name__}, expected the config that it was called with")
    return changed.to_dict()
