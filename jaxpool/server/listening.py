"""Where the server listens: an address that is looked at before the models are loaded, and told once it answers."""

from __future__ import annotations

import argparse
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn


class Server(uvicorn.Server):
    """uvicorn's, which says on stderr when it answers.

    Args:
        config: uvicorn's.
        told: what is said behind the address, a line each; None: nothing is said at all.
    """

    def __init__(self, config: uvicorn.Config, told: Sequence[str] | None) -> None:
        super().__init__(config)
        self._told = told

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's: the application starts, then it listens."""
        await super().startup(sockets)
        if self._told is not None:
            lines = [f"jaxpool answers on {self.address} (Ctrl-C ends it)", *self._told]
            print("\n  ".join(lines), file=sys.stderr, flush=True)

    @property
    def address(self) -> str:
        """As clients write it."""
        if self.config.uds:
            return f"unix:{self.config.uds}"
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http{'s' * self.config.is_ssl}://{f'[{host}]' if ':' in host else host}:{port}"


def check_tls(args: argparse.Namespace) -> None:
    """Raises ValueError where certificate and key are none or not one another's, or the others have no meaning."""
    if not args.ssl_certfile:
        if args.ssl_keyfile or args.ssl_ca_certs or args.ssl_ciphers or args.ssl_cert_reqs:
            raise ValueError("TLS needs --ssl-certfile, and --ssl-keyfile unless the key is in the same file")
        return
    if args.ssl_cert_reqs and not args.ssl_ca_certs:
        raise ValueError("--ssl-cert-reqs: by --ssl-ca-certs clients' certificates are known, and there are none")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    steps: list[tuple[str, str | None, Callable[[str], Any]]] = [
        (
            "--ssl-certfile, --ssl-keyfile: no certificate with its key",
            args.ssl_certfile,
            lambda file: context.load_cert_chain(file, args.ssl_keyfile),
        ),
        ("--ssl-ca-certs: no certificates", args.ssl_ca_certs, context.load_verify_locations),
        ("--ssl-ciphers", args.ssl_ciphers, context.set_ciphers),
    ]
    for what, given, take in steps:
        try:
            if given:
                take(given)
        except ssl.SSLError as error:
            raise ValueError(f"{what}: {error}") from None


@contextmanager
def taken(args: argparse.Namespace) -> Iterator[list[socket.socket] | None]:
    """The address, until the server has ended: a socket that is bound, or None where uvicorn makes a Unix one itself.

    Raises:
        OSError: another has it, or there is no such address.
    """
    if args.uds:
        _check_path(Path(args.uds))
        try:
            yield None
        finally:
            Path(args.uds).unlink(missing_ok=True)
        return
    with socket.socket(socket.AF_INET6 if ":" in args.host else socket.AF_INET) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind((args.host, args.port))
        except OSError as error:
            raise OSError(f"--host {args.host} --port {args.port}: {error.strerror}") from None
        yield [own]


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """`uvicorn.Config`'s arguments."""
    given = {
        "log_config": args.log_config_file,
        "ssl_ciphers": args.ssl_ciphers,
        "ssl_keyfile": args.ssl_keyfile,
        "ssl_certfile": args.ssl_certfile,
        "ssl_ca_certs": args.ssl_ca_certs,
        "uds": args.uds,
    }
    return {name: value for name, value in given.items() if value} | {
        "ssl_cert_reqs": args.ssl_cert_reqs,
        "log_level": args.uvicorn_log_level or args.log_level,
        "access_log": not args.disable_uvicorn_access_log,
        "timeout_graceful_shutdown": args.shutdown_timeout,
        # Longer than the clients' and balancers' own 60 s or less: who sends on a connection that the server is just
        # closing sees a request fail.
        "timeout_keep_alive": args.keep_alive_timeout,
        "server_header": False,
    }


def _check_path(path: Path) -> None:
    if not path.parent.is_dir():
        raise OSError(f"--uds {path}: there is no directory {path.parent}")
    if not path.exists():
        return
    if not path.is_socket():
        raise OSError(f"--uds {path}: there is a file that is no socket")
    with socket.socket(socket.AF_UNIX) as other, suppress(ConnectionRefusedError):
        other.connect(str(path))
        raise OSError(f"--uds {path}: another process listens there")
