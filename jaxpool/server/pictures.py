"""Pictures in requests: fetched from where the server's owner allows, checked and opened, in threads of their own."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxpool.images.opening import Limits, open_image
from jaxpool.prompts import kind_of, picture_url
from jaxpool.server.errors import ApiError

if TYPE_CHECKING:
    from jaxpool.images.fetching import Fetching

# Downloads wait, most of the time; what came with a request does not wait behind them.
DOWNLOADS = 32
# Of width to height, or the other way: resized by its shorter edge, a line would grow to gigabytes.
LONGEST = 200
# All pictures of a request together, by the limit of one: they are in memory at the same time.
TOGETHER = 8
# … and of all requests that are worked on.
EVERYONE = 32
# What clients may say of sizes (`mm_processor_kwargs`), which have to be computed before they can turn out too large:
# numbers of pixels have a picture's limit, edges that a picture is resized to and all others these.
PIXELS = ("min_pixels", "max_pixels")
EDGES = ("size", "crop_size")
LARGEST_EDGE, LARGEST = 512, 1024


@dataclass(frozen=True)
class Allowed:
    """What pictures a server takes.

    Attributes:
        hosts: that http(s) URLs may name; none: no such URL.
        directory: below which file:// URLs may read; None: no such URL.
        bytes: of a picture, as it comes.
        pixels: of a picture, width times height.
        per_prompt: pictures of one prompt.

    Raises:
        ValueError: a limit below its least value, or `directory` is none.
    """

    hosts: tuple[str, ...] = ()
    directory: Path | None = None
    bytes: int = 8 * 2**20
    pixels: int = 2**25
    per_prompt: int = 999

    def __post_init__(self) -> None:
        for name, least in (("bytes", 1), ("pixels", 1), ("per_prompt", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"pictures: {name} is {getattr(self, name)}, expected at least {least}")
        if self.directory is not None and not self.directory.is_dir():
            raise ValueError(f"--allowed-local-media-path is {str(self.directory)!r}, which is no directory")

    def check_options(self, options: Mapping[str, Any], name: str = "mm_processor_kwargs") -> None:
        """Raises ValueError for sizes that no picture needs."""
        for key, value in options.items():
            most = self.pixels if key in PIXELS else LARGEST_EDGE if key in EDGES else LARGEST
            if wrong := [number for number in _numbers(value) if not -most <= number <= most]:
                raise ValueError(f"{name}: {key!r} has {wrong[0]}, at most {most} is allowed here")


class _Link(NamedTuple):
    url: str
    name: str


class Content(NamedTuple):
    """A content of a message or of a document.

    Attributes:
        parts: a list of them, a text, or something wrong, which stays as it is.
        name: how errors call it.
        alone: whether its only part has that name too.
    """

    parts: Any
    name: str
    alone: bool = False

    @property
    def links(self) -> dict[int, _Link]:
        """The pictures among the parts that a URL stands for, by the part's number. Raises ValueError."""
        if isinstance(self.parts, str) or not isinstance(self.parts, Sequence):
            return {}
        names = {i: self.name if self.alone else f"{self.name}[{i}]" for i in range(len(self.parts))}
        return {
            i: _Link(picture_url(part, names[i]), names[i])
            for i, part in enumerate(self.parts)
            if kind_of(part) == "image_url"
        }

    def opened(self, images: Mapping[int, Any]) -> Any:
        """The parts, with images for the numbers given."""
        if not images:
            return self.parts
        return [
            {"type": "image_pil", "image_pil": images[i]} if i in images else part for i, part in enumerate(self.parts)
        ]


class Pictures:
    """Opens the pictures of requests.

    Args:
        allowed: what the server takes.

    Raises:
        ValueError: `allowed.hosts` are none.
        ImportError: URLs are allowed, and what fetches them is not installed.
    """

    def __init__(self, allowed: Allowed) -> None:
        self.allowed = allowed
        self._held = _Held(EVERYONE * allowed.pixels)
        self._limits = Limits(pixels=allowed.pixels, bytes=allowed.bytes)
        if allowed.hosts:
            self._fetching  # noqa: B018 - wrong hosts are told at the start
        threads = min(8, os.cpu_count() or 1)
        self._opening = ThreadPoolExecutor(threads, thread_name_prefix="jaxpool-server-pictures")
        self._downloading = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="jaxpool-server-downloads")

    async def opened(self, prompts: Sequence[Sequence[Content]]) -> list[list[Any]]:
        """The contents with each part of type "image_url" become one of type "image_pil".

        Args:
            prompts: the contents of each prompt.

        Raises:
            ValueError: too many, or one that cannot be had or opened; the part is named, and nothing of the host.
            ApiError: 501, this server lacks what opens them.
        """
        links = [[content.links for content in prompt] for prompt in prompts]
        self._check_count(links)
        flat = [link for prompt in links for found in prompt for link in found.values()]
        images = iter(await self._open_all(flat) if flat else ())
        return [
            [content.opened({i: next(images) for i in found}) for content, found in zip(prompt, own, strict=True)]
            for prompt, own in zip(prompts, links, strict=True)
        ]

    def close(self) -> None:
        """Ends its threads."""
        for pool in (self._opening, self._downloading):
            pool.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _fetching(self) -> Fetching:
        from jaxpool.images.fetching import Fetching

        return Fetching(frozenset(self.allowed.hosts), self.allowed.directory, self.allowed.bytes)

    def _check_count(self, links: Sequence[Sequence[Mapping[int, _Link]]]) -> None:
        most = self.allowed.per_prompt
        for prompt in links:
            found = [link.name for content in prompt for link in content.values()]
            if len(found) > most:
                raise ValueError(f"{found[most]}: At most {most} image(s) may be provided in one prompt.")

    async def _open_all(self, links: Sequence[_Link]) -> list[Any]:
        try:
            fetching = self._fetching
        except ImportError:
            raise ApiError(501, "pictures are not installed on this server") from None
        loop, room = asyncio.get_running_loop(), _Room(TOGETHER * self.allowed.pixels)
        tasks = [
            loop.run_in_executor(
                self._opening if link.url[:5].lower() == "data:" else self._downloading,
                self._open, link, fetching, room,
            )
            for link in links
        ]  # fmt: skip
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _open(self, link: _Link, fetching: Fetching, room: _Room) -> Any:
        from jaxpool.images.fetching import read_url

        room.check(link.name)
        try:
            image = open_image(read_url(link.url, fetching, link.name), link.name, self._limits)
        except ImportError:
            raise ApiError(501, "pictures are not installed on this server") from None
        width, height = image.size
        if max(width, height) > LONGEST * min(width, height):
            raise ValueError(f"{link.name}: is {width}×{height} pixels, one edge more than {LONGEST} times the other")
        room.take(width * height, link.name)
        self._held.hold(image)
        return image


class _Held:
    """The pixels of all pictures that are in memory at the moment: whoever forgets one makes room for others."""

    def __init__(self, most: int) -> None:
        self._most, self._now = most, 0
        self._lock = threading.Lock()

    def hold(self, image: Any) -> None:
        """Counts a picture as long as it lives. Raises ApiError 429 where there is no room for it."""
        pixels = image.width * image.height
        with self._lock:
            if self._now and self._now + pixels > self._most:
                raise ApiError(429, "too many pictures are in work; try again", headers={"Retry-After": "1"})
            self._now += pixels
        weakref.finalize(image, self._release, pixels)

    def _release(self, pixels: int) -> None:
        with self._lock:
            self._now -= pixels


class _Room:
    """What is left of the pixels that the pictures of one request may have together."""

    def __init__(self, pixels: int) -> None:
        self._all = self._left = pixels
        self._lock = threading.Lock()

    def take(self, pixels: int, name: str) -> None:
        """Raises ValueError when there is not enough."""
        with self._lock:
            self._left -= pixels
        self.check(name)

    def check(self, name: str) -> None:
        """Raises ValueError once more was taken than there was."""
        if self._left < 0:
            raise ValueError(f"{name}: the pictures of this request have more than {self._all} pixels together")


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in a value of JSON."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, int | float):
            yield value
