"""URLs of pictures -> bytes, for a server that strangers send URLs to.

A URL must not reach what the server's owner did not name: only hosts on a list are asked, redirects included, and
only at public addresses; a connection goes to the very address that was checked, so a name server that answers
differently the second time gains nothing. What comes is bounded in size and in time.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

try:
    import httpcore
    import httpx
except ImportError as missing:
    raise ImportError(f"URLs of pictures need httpx ({missing}): pip install 'jaxpool[images]'") from missing

_REDIRECTS = (301, 302, 303, 307, 308)
# IPv6 addresses behind which a gateway of the network reaches an IPv4 address, its last 32 bits (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Fetching:
    """What URLs may reach.

    Attributes:
        hosts: names that http(s) may ask, on any port; "*.example.com" stands for every sub-domain of example.com.
            Empty: no http(s) at all. A host at an address that is not public is asked only if the address itself, or
            "localhost", is listed.
        directory: below which file:// may read, symbolic links followed. None: no file:// at all.
        limit: bytes of one picture.
        seconds: for a whole download, its redirects included. Only the name server takes its own time.
        redirects: that are followed.

    Raises:
        ValueError: an entry of `hosts` is no host name.
    """

    hosts: frozenset[str]
    directory: Path | None
    limit: int
    seconds: float = 10.0
    redirects: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "hosts", frozenset(_entry(host) for host in self.hosts))

    def listed(self, host: str) -> bool:
        """Whether a host is on the list, itself or as a sub-domain."""
        if host in self.hosts:
            return True
        # "*.0.0.1" is no sub-domain of anything.
        return not _is_address(host) and any(entry[0] == "*" and host.endswith(entry[1:]) for entry in self.hosts)


class _UrlError(Exception):
    """Why a URL gives no bytes; `read_url` puts its name in front."""


def read_url(url: str, fetching: Fetching, name: str) -> bytes:
    """What a data:, http(s):// or file:// URL stands for.

    Args:
        url: as it came from outside.
        fetching: what may be reached.
        name: how errors call it.

    Raises:
        ValueError: it may not be reached, is broken or too large, or does not come in time. Nothing is said about
            addresses, nor about files outside the directory.
    """
    scheme = url.partition(":")[0].lower()
    try:
        if scheme == "data":
            return _data(url, fetching.limit)
        if scheme in ("http", "https"):
            return _download(url, fetching)
        if scheme == "file":
            return _file(url, fetching)
    except _UrlError as error:
        raise ValueError(f"{name}: {error}") from None
    raise ValueError(f"{name}: expected a URL data:…, http(s)://… or file://…, got {url[:40]!r}")


def _too_large(limit: int) -> _UrlError:
    return _UrlError(f"has more than the {limit} bytes that are allowed")


# --- data:


def _data(url: str, limit: int) -> bytes:
    # RFC 2397: data:[<type>][;base64],<data>, percent-encoded in both cases.
    head, comma, written = url.partition(",")
    if not comma:
        raise _UrlError("the data: URL has no comma")
    encoded = head.lower().endswith(";base64")
    # Sizes first, while nothing has been copied: of three characters %XX one is left, of four of base64 three.
    room = (limit + 2) // 3 * 4 if encoded else limit
    if len(written) - 2 * written.count("%") > room:
        raise _too_large(limit)
    if not written.isascii() or re.search(r"%(?![0-9A-Fa-f]{2})", written):
        raise _UrlError("the data: URL is not percent-encoded as it should be")
    content = unquote_to_bytes(written)
    if encoded:
        # Python passes over a "=" behind whole groups of four.
        if len(content) % 4 or content.endswith(b"==="):
            raise _UrlError("the data: URL is no valid base64")
        try:
            content = base64.b64decode(content, validate=True)
        except ValueError:
            raise _UrlError("the data: URL is no valid base64") from None
    if len(content) > limit:
        raise _too_large(limit)
    return content


# --- file:


def _file(url: str, fetching: Fetching) -> bytes:
    if fetching.directory is None:
        raise _UrlError("file:// URLs are not allowed here")
    try:
        parts = urlsplit(url)
        path, root = Path(unquote(parts.path)), fetching.directory.resolve()
        if parts.netloc not in ("", "localhost") or not path.is_absolute():
            raise _UrlError("expected file:// and an absolute path")
        path = path.resolve()
        # Before anything is said about the file: whether others exist is nobody's business.
        if not path.is_relative_to(root):
            raise _UrlError("this file is not in the directory that is allowed")
        # A pipe or a device would be waited for.
        if not path.is_file():
            raise _UrlError("there is no such file")
        with path.open("rb") as file:
            content = file.read(fetching.limit + 1)
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle
        raise _UrlError("this file cannot be read") from None
    if len(content) > fetching.limit:
        raise _too_large(fetching.limit)
    return content


# --- http(s):


class _Clock:
    """The time that is left of a download."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; raises _UrlError when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.over()
        return left

    def over(self) -> _UrlError:
        return _UrlError(f"did not come within {self._seconds:g} s")


def _download(url: str, fetching: Fetching) -> bytes:
    if not fetching.hosts:
        raise _UrlError("http(s) URLs are not allowed here")
    clock, target = _Clock(fetching.seconds), _parsed(url)
    for _ in range(fetching.redirects + 1):
        try:
            answer = _ask(target, _addresses(target, fetching), fetching.limit, clock)
        except httpcore.TimeoutException:
            raise clock.over() from None
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError):
            # ValueError: names that TLS does not carry.
            raise _UrlError("the connection to its host failed") from None
        if isinstance(answer, bytes):
            return answer
        target = _parsed(answer, target)
    raise _UrlError(f"is redirected more than {fetching.redirects} times")


def _parsed(url: str, base: httpx.URL | None = None) -> httpx.URL:
    # One parser for the check and for the connection: two would disagree about some URL.
    try:
        parsed = base.join(url) if base else httpx.URL(url)
        parsed = parsed.copy_with(host=_host(parsed))
    except (httpx.InvalidURL, ValueError):
        raise _UrlError("the URL is broken") from None
    if (parsed.port or 0) > 65535:
        raise _UrlError("the URL is broken")
    if parsed.scheme not in ("http", "https"):
        raise _UrlError("is redirected to a URL that is not http(s)")
    if parsed.userinfo:
        raise _UrlError("a URL with a user's name or password is not allowed")
    return parsed


def _host(url: httpx.URL) -> str:
    # Lower-case and IDNA are httpx's doing.
    return url.raw_host.decode("ascii").removesuffix(".")


def _entry(host: str) -> str:
    star = "*." if host.startswith("*.") else ""
    try:
        name = _host(httpx.URL(scheme="http", host=host.removeprefix(star), path="/"))
    except httpx.InvalidURL:
        name = ""
    if not _is_address(name) and not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name):
        raise ValueError(f"hosts: expected host names such as 'example.com' or '*.example.com', got {host!r}")
    return star + name


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _addresses(url: httpx.URL, fetching: Fetching) -> list[str]:
    """Where a URL's host is, looked up this once.

    Raises:
        _UrlError: it has no address, or it may not be asked; what is wrong with it is not said.
    """
    host = url.raw_host.decode("ascii")
    refused = _UrlError("this host is not allowed")
    if not fetching.listed(host):
        raise refused
    try:
        answers = socket.getaddrinfo(host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _UrlError("its host has no address") from None
    addresses = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    if not addresses:
        raise _UrlError("its host has no address")
    # No "*." stands for these: the list names them.
    meant = host == "localhost" or _is_address(host)
    if not meant and not all(_is_public(address) for address in addresses):
        raise refused
    return addresses


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.is_site_local:
            return False
        address = inner or address
    # Python calls some of the last two global.
    return address.is_global and not address.is_reserved and not address.is_multicast


def _ask(url: httpx.URL, addresses: list[str], limit: int, clock: _Clock) -> bytes | str:
    """The body, or where a redirect leads."""
    # The URL keeps its host's name, so certificates are checked against it; only the sockets know the addresses.
    pool = httpcore.ConnectionPool(ssl_context=_tls(), network_backend=_Checked(addresses, clock))
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    # Nothing compressed: a few bytes would become gigabytes.
    headers = [
        (b"Host", url.netloc),
        (b"User-Agent", b"jaxpool"),
        (b"Accept", b"*/*"),
        (b"Accept-Encoding", b"identity"),
    ]
    with pool, pool.stream("GET", target, headers=headers) as response:
        answered = {key.lower().decode("latin-1"): value.decode("latin-1") for key, value in response.headers}
        if response.status in _REDIRECTS and "location" in answered:
            return answered["location"]
        if response.status != 200:
            raise _UrlError(f"its host answered with status {response.status}")
        if answered.get("content-encoding", "identity").lower() != "identity":
            raise _UrlError("its host sends it compressed")
        # httpcore takes numbers alone.
        if int(answered.get("content-length", "0")) > limit:
            raise _too_large(limit)
        body = bytearray()
        for part in response.iter_stream():
            body += part
            if len(body) > limit:
                raise _too_large(limit)
        return bytes(body)


@cache
def _tls() -> ssl.SSLContext:
    # Reading the certificates takes longer than many a download.
    return httpx.create_ssl_context(trust_env=False)


class _Checked(httpcore.NetworkBackend):
    """Connections to addresses that were checked, whatever the host is called; one after the other, as they fail."""

    def __init__(self, addresses: list[str], clock: _Clock) -> None:
        self._addresses = addresses
        self._clock = clock
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        for position, address in enumerate(self._addresses):
            # A host that does not answer at one address leaves time for the others.
            share = self._clock.left() / (len(self._addresses) - position)
            try:
                stream = self._sockets.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
            else:
                return _Timed(stream, self._clock)
        raise failed


class _Timed(httpcore.NetworkStream):
    """A connection whose every step has the time that is left, so that a trickle of bytes ends as well."""

    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock) -> None:
        self._stream = stream
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._clock.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, self._clock.left()), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
