"""The models of a server, by every name that they go by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxpool.server.errors import ApiError
from jaxpool.server.serving import Serving


def default_name(model: str) -> str:
    """What a model is called unless said otherwise: its name on the hub; of a directory, the last part alone.

    The rest of a path is the host's affair: names stand in errors, and in answers that need no key.
    """
    directory = Path(model)
    if not directory.is_dir():
        return model
    return directory.name if directory.name not in ("", "..") else directory.resolve().name or model


def check_names(names: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The names of several models.

    Raises:
        ValueError: two models of one name.
    """
    seen: set[str] = set()
    for own in map(set, names):
        if twice := sorted(seen & own):
            raise ValueError(f"two models are called {twice[0]!r}: give them names of their own (--served-model-name)")
        seen |= own
    return list(names)


class Models:
    """Served models. One that goes by its `default_name` is also found by all of what the command line calls it.

    Args:
        servings: at least one; the first answers requests that name none.

    Raises:
        ValueError: two models of one name.
    """

    def __init__(self, servings: Sequence[Serving]) -> None:
        self._servings = tuple(servings)
        check_names([serving.names for serving in servings])
        self._by_name = {name: serving for serving in servings for name in serving.names}
        unnamed = [serving for serving in servings if serving.name == default_name(serving.llm.model)]
        self._unshown = {serving.llm.model.rstrip("/"): serving for serving in unnamed}

    def __iter__(self) -> Iterator[Serving]:
        return iter(self._servings)

    def items(self) -> Iterator[tuple[str, Serving]]:
        """Every name that is shown, with its model."""
        yield from self._by_name.items()

    def find(self, name: str | None) -> Serving:
        """The model of a name.

        Raises:
            ApiError: 404, none has it.
        """
        if not name:
            return self._servings[0]
        serving = self._by_name.get(name) or self._unshown.get(name.rstrip("/"))
        if serving is None:
            raise ApiError(404, f"The model `{name}` does not exist.", param="model")
        return serving
