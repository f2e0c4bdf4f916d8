"""jaxpool's server beside vLLM's (and infinity's) on loopback, in one run: `python -m benchmarks.serve`.

All are started, and those that are not asked are stopped by signal. Clients ask for one text at a time, each as soon
as it has its answer; rounds are taken in turn. A figure is of a round's answers, after as long a round that is not
counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.lengths import texts
from benchmarks.run import MINILM
from benchmarks.venvs import infinity_python, preloaded, vllm_python
from benchmarks.workers import COMPILED, EAGER
from jaxpool.hub import resolve

CLIENTS = (1, 8, 64, 256)
LENGTHS = {"short": 15, "passages": 250}
PATIENCE = 300
Command = tuple[list[str], dict[str, str]]


@dataclass
class Server:
    """A server's process group, stopped except while it is asked."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    resident: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/embeddings"

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    @contextmanager
    def awake(self) -> Iterator[None]:
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.resident.append(_resident(self.process.pid))
            self.signal(signal.SIGSTOP)


@dataclass(frozen=True)
class Figures:
    """A round.

    Attributes:
        rate: requests/s.
        p50, p95, p99: seconds.
        errors: answers that were no 200.
    """

    rate: float
    p50: float
    p95: float
    p99: float
    errors: int


def _jaxpool(model: str, dtype: str, cache: Path) -> Command:
    return [sys.executable, "-m", "jaxpool", "serve", model, "--dtype", dtype], {}


def _vllm(model: str, dtype: str, cache: Path, *more: str) -> Command:
    python = vllm_python(cache)
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--runner", "pooling"]
    command += ["--dtype", dtype, "--disable-uvicorn-access-log", *more]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_NO_USAGE_STATS": "1"}
    return command, own | {"LD_PRELOAD": preloaded(python)}


def _infinity(model: str, dtype: str, cache: Path) -> Command:
    command = [str(infinity_python(cache).with_name("infinity_emb")), "v2", "--model-id", model, "--device", "cpu"]
    command += ["--engine", "torch", "--dtype", dtype, "--no-bettertransformer", "--url-prefix", "/v1"]
    return command, {"DO_NOT_TRACK": "1"}


# What starts each server, but for its port and its model's name, and which variables it is given.
COMMANDS: Mapping[str, Callable[[str, str, Path], Command]] = {
    "jaxpool": _jaxpool,
    "vllm": lambda *asked: _vllm(*asked, "--enforce-eager"),
    "vllm_compiled": _vllm,
    "infinity": _infinity,
}
SERVERS = tuple(name for name in COMMANDS if name != COMPILED)


def start(name: str, model: str, dtype: str, log: Path, cache: Path) -> Server:
    """Starts a server and waits until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, own = COMMANDS[name](model, dtype, cache)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--served-model-name", "m"],
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"} | own,
        )
    end = time.monotonic() + PATIENCE
    ready = f"http://127.0.0.1:{port}/{'ready' if name == 'jaxpool' else 'health'}"
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended: {log.read_text()[-500:]}")
        with suppress(OSError), urllib.request.urlopen(ready, timeout=5) as answer:
            if answer.status == 200:
                return Server(name, port, process)
        time.sleep(0.2)
    raise RuntimeError(f"{name} is not ready after {PATIENCE} s")


async def ask(server: Server, clients: int, seconds: float, asked: list[str], batch: int = 1) -> Figures:
    """So many clients, each with one request of `batch` texts at a time."""
    import aiohttp

    groups = [asked[i : i + batch] for i in range(0, len(asked) - batch + 1, batch)]
    bodies = [json.dumps({"model": "m", "input": group}).encode() for group in groups]
    taken: list[float] = []
    errors = 0

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), headers={"Content-Type": "application/json"}
    ) as session:

        async def client(number: int, until: float, keep: bool) -> None:
            nonlocal errors
            while time.perf_counter() < until:
                start, failed = time.perf_counter(), False
                try:
                    async with session.post(server.url, data=bodies[number % len(bodies)]) as answer:
                        await answer.read()
                        failed = answer.status != 200
                except aiohttp.ClientError:  # a connection that was closed while the server was stopped, say
                    failed = True
                if keep:
                    taken.append(time.perf_counter() - start)
                    errors += failed
                number += clients

        for keep in (False, True):
            begun = time.perf_counter()
            await asyncio.gather(*(client(i, begun + seconds, keep) for i in range(clients)))
            lasted = time.perf_counter() - begun
    ranked = sorted(taken)
    p50, p95, p99 = (ranked[min(len(ranked) - 1, int(share * len(ranked)))] for share in (0.5, 0.95, 0.99))
    return Figures(len(taken) / lasted, p50, p95, p99, errors)


def measure(servers: list[Server], arguments: argparse.Namespace, model: str) -> list[dict[str, Any]]:
    """Every length and number of clients."""
    found = []
    for length in arguments.lengths:
        asked, tokens = texts(length, Path(model))
        for clients in arguments.clients:
            rounds: dict[str, list[Figures]] = {server.name: [] for server in servers}
            for turn in range(arguments.rounds):
                for server in servers[turn % len(servers) :] + servers[: turn % len(servers)]:
                    with server.awake():
                        rounds[server.name].append(
                            asyncio.run(ask(server, clients, arguments.seconds, asked, arguments.batch))
                        )
            for name, figures in rounds.items():
                middle = {key: statistics.median(getattr(f, key) for f in figures) for key in asdict(figures[0])}
                cell = {"length": length, "tokens": sum(tokens) / len(tokens), "clients": clients, "server": name}
                found.append(cell | middle)
            print(_line(found[-len(servers) :]), flush=True)
    return found


def soak(server: Server, minutes: float, model: str) -> None:
    """Asks one server for so long, and prints what it holds each minute."""
    asked, _ = texts("mixed", Path(model))
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        with server.awake():
            figures = asyncio.run(ask(server, 64, min(30, 60 * minutes / 2), asked))
        print(
            f"{figures.rate:.0f} requests/s, {figures.errors} errors, {server.resident[-1] / 2**20:,.0f} MiB",
            flush=True,
        )


def _line(cells: list[dict[str, Any]]) -> str:
    ours = next(cell for cell in cells if cell["server"] == "jaxpool")
    row = [ours["length"], f"{ours['tokens']:.0f}", str(ours["clients"])]
    others = [cell for cell in cells if cell is not ours]
    row.append(" ".join(f"**{ours['rate'] / cell['rate']:.2f}**" for cell in others) or "–")
    for cell in [ours, *others]:
        times = " / ".join(f"{1000 * cell[key]:.0f}" for key in ("p50", "p95", "p99"))
        row += [f"{cell['rate']:.1f}", times, f"{cell['errors']:.0f}"]
    return "| " + " | ".join(row) + " |"


def _resident(group: int) -> int:
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE") if int(fields[2]) == group else 0
    return total


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__.splitlines()[0])
    parser.add_argument("--servers", nargs="+", default=["jaxpool", "vllm"], choices=SERVERS)
    parser.add_argument("--vllm-compile", action="store_true", help="vLLM without --enforce-eager, as it is by default")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of all")
    parser.add_argument("--lengths", nargs="+", default=list(LENGTHS), choices=LENGTHS)
    parser.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS))
    parser.add_argument("--batch", type=int, default=1, help="texts of a request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="only jaxpool, and what memory it holds")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/jaxpool-bench").expanduser())
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    if arguments.vllm_compile:
        arguments.servers = [COMPILED if name == EAGER else name for name in arguments.servers]
    model = str(resolve(MINILM))
    logs = arguments.cache / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    servers: list[Server] = []
    try:
        for name in ["jaxpool"] if arguments.soak else arguments.servers:
            servers.append(start(name, model, arguments.dtype, logs / f"serve-{name}.log", arguments.cache))
            servers[-1].signal(signal.SIGSTOP)
        if arguments.soak:
            soak(servers[0], arguments.soak, model)
            return
        what = ["requests/s", "p50 / p95 / p99, ms", "errors"]
        columns = ["length", "tokens", "clients", "ratio", *(f"{s.name} {w}" for s in servers for w in what)]
        print(f"{machine.describe()}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        found = measure(servers, arguments, model)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    finally:
        for server in servers:
            server.signal(signal.SIGKILL)
            server.process.wait()


if __name__ == "__main__":
    main()
