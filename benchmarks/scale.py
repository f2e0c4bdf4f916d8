"""How a job on Ray Data grows with chips, by simulation: `python -m benchmarks.scale`.

No TPU has run this project. What share of a chip's peak a model reaches (MFU), what a network carries and what a chip
costs are assumptions, printed with the tables; what any machine can measure, `--measure` does (`scale_measure`).

A passage goes through five stages: a reader's core, the driver, the object store, an actor's host (tokenising and the
engine's Python) and its chips. Blocks go through them one by one in a discrete-event simulation of the whole job.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

from benchmarks import roofline
from benchmarks.published import MODELS, recipe_of
from jaxpool.plan import plan_slice
from jaxpool.slices import Slice

MEASURED, PUBLISHED, ASSUMED = "measured, 2026-11-23", "published", "**assumed**"
# Chips of a host, at most.
HOST = 8
CHIPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHAPES = ("bge-base", "qwen3-embedding-0.6b", "qwen3-embedding-8b")
MFUS = (0.2, 0.4, 0.6)


def _given(default: float, source: str, meaning: str) -> Any:
    return field(default=default, metadata={"source": source, "meaning": meaning})


@dataclass(frozen=True)
class Assumptions:
    """What holds for every kind of chip; each is an option of the command line."""

    passages: float = _given(1e9, "chosen", "passages of the job")
    tokens: float = _given(250, "chosen", "tokens a passage")
    mfu: float = _given(0.4, ASSUMED, "share of a chip's peak that the texts' matrix products reach")
    actor_chips: int = _given(8, "chosen", "chips an actor, at most: a host's, for one replica a host")
    block_rows: int = _given(16_384, "chosen", "passages a block, of which Ray makes a task")
    in_flight: int = _given(2, ASSUMED, "blocks that an actor has, one in work")
    block_tasks: int = _given(3, ASSUMED, "tasks a block: read, embed, write")
    task_seconds: float = _given(0.010, MEASURED, "s of the driver a task")
    reading_rate: float = _given(130_000, MEASURED, "passages/s that a core reads from parquet")
    reading_share: float = _given(0.1, ASSUMED, "share of a host's cores that read")
    text_bytes: float = _given(920, MEASURED, "bytes of a passage in Arrow; its vector has 4 a dimension")
    store_rate: float = _given(1e9, ASSUMED, "bytes/s that the object store of a host of 8 chips moves, both ways")
    tokenising_rate: float = _given(440_000, MEASURED, "tokens/s a core")
    engine_seconds: float = _given(70e-6, MEASURED, "s a passage of an actor's Python, in one thread at a time")


@dataclass(frozen=True)
class Kind:
    """A kind of chip, and a chip's part of its host."""

    peak: float = _given(0.0, PUBLISHED, "bf16 FLOP/s")
    cores: float = _given(0.0, ASSUMED, "part of its host's cores (half the vCPUs, of which 8 chips share 224 and 180)")
    price: float = _given(0.0, ASSUMED, "$ an hour on demand, to be looked up")


KINDS = {"v5e": Kind(197e12, 14, 1.20), "v6e": Kind(918e12, 11.25, 2.70)}


@dataclass(frozen=True)
class Stage:
    """One of the stages, for one block.

    Attributes:
        name: what it is.
        servers: how many blocks it works on at a time.
        seconds: for each.
    """

    name: str
    servers: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """What is simulated; seconds are a block's.

    Attributes:
        blocks: how many.
        reader, driver: shared by all actors.
        store: an actor's part of the object stores, beside its other work.
        host: an actor's tokenising, engine and chips, all at once, so that the slowest counts.
        in_flight: blocks that an actor may have.
    """

    blocks: int
    reader: Stage
    driver: Stage
    store: Stage
    host: tuple[Stage, ...]
    in_flight: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All of them."""
        return (self.reader, self.driver, self.store, *self.host)

    @property
    def slowest(self) -> Stage:
        """The stage that limits."""
        return max(self.stages, key=lambda stage: stage.seconds / stage.servers)

    @property
    def bound(self) -> float:
        """Seconds that the slowest stage needs by itself: no job is quicker."""
        return self.blocks * self.slowest.seconds / self.slowest.servers


def make_job(given: Assumptions, kind: Kind, model: Mapping[str, Any], chips: int) -> Job:
    """The stages of a job.

    Args:
        given: what is assumed.
        kind: of the chips.
        model: a config.json, for its FLOPs and the width of its vectors.
        chips: how many; actors have `actor_chips` each, or all there are.

    Raises:
        ValueError: the chips do not divide into actors.
    """
    own = min(given.actor_chips, chips)
    if chips % own:
        raise ValueError(f"{chips} chips do not divide into actors of {own}")
    actors, rows = chips // own, given.block_rows
    cores = kind.cores * own
    tokens, flops = rows * given.tokens, rows * roofline.flops(model, int(given.tokens))
    # Each text is fetched by its reader, goes to an actor elsewhere, and on with its vector to where it is written.
    moved = rows * (3 * given.text_bytes + 4 * model["hidden_size"])
    return Job(
        blocks=max(1, round(given.passages / rows)),
        reader=Stage("reader", max(1, int(actors * cores * given.reading_share)), rows / given.reading_rate),
        driver=Stage("driver", 1, given.block_tasks * given.task_seconds),
        store=Stage("object store", actors, moved / (given.store_rate * own / HOST)),
        host=(
            Stage("tokenising", actors, tokens / (given.tokenising_rate * cores * (1 - given.reading_share))),
            Stage("engine", actors, rows * given.engine_seconds),
            Stage("chips", actors, flops / (own * kind.peak * given.mfu)),
        ),
        in_flight=given.in_flight,
    )


def simulate(job: Job) -> float:
    """Seconds from the first read to the last vector.

    Readers read ahead until as many blocks wait as there are readers; the driver hands one after another to the actor
    that has fewest; an actor fetches a block while it works on the one before.
    """
    actor_seconds = max(stage.seconds for stage in job.host)
    actors = job.store.servers
    fetched, done = [0.0] * actors, [0.0] * actors
    # A heap of the places for blocks that actors have; one that has had fewer comes first.
    room = [(turn, actor) for turn in range(job.in_flight) for actor in range(actors)]
    free_readers, unread, waiting, driver_free = job.reader.servers, job.blocks, 0, True
    events: list[tuple[float, str, int, int]] = []
    now = 0.0
    while True:
        while unread and free_readers and waiting < job.reader.servers:
            unread, free_readers = unread - 1, free_readers - 1
            heapq.heappush(events, (now + job.reader.seconds, "read", 0, 0))
        if waiting and driver_free and room:
            turn, actor = heapq.heappop(room)
            waiting, driver_free = waiting - 1, False
            heapq.heappush(events, (now + job.driver.seconds, "handed out", turn, actor))
            continue
        if not events:
            return now
        now, what, turn, actor = heapq.heappop(events)
        if what == "read":
            free_readers, waiting = free_readers + 1, waiting + 1
        elif what == "handed out":
            driver_free = True
            fetched[actor] = max(now, fetched[actor]) + job.store.seconds
            done[actor] = max(fetched[actor], done[actor]) + actor_seconds
            heapq.heappush(events, (done[actor], "done", turn, actor))
        else:
            heapq.heappush(room, (turn + job.in_flight, actor))


@dataclass(frozen=True)
class Result:
    """What a job of so many chips comes to."""

    chips: int
    seconds: float
    passages: float
    tokens: float
    cost: float
    limit: str


def run(given: Assumptions, kind: Kind, model: Mapping[str, Any], chips: int) -> Result:
    """Simulates one job; arguments as `make_job`."""
    job = make_job(given, kind, model, chips)
    seconds = simulate(job)
    rate = job.blocks * given.block_rows / seconds
    limit = f"{job.slowest.name} ({job.bound / seconds:.0%})"
    return Result(chips, seconds, rate, rate * given.tokens, chips * kind.price * seconds / 3600, limit)


@cache
def least_chips(kind: str, model: str) -> int:
    """The smallest slice that holds a model in bfloat16, as `jaxpool plan` has it."""
    found = plan_slice(recipe_of(MODELS[model]), "bfloat16", Slice(kind, "1x1")).smallest
    return found[0].devices if found else CHIPS[-1] + 1


def assumptions_table(given: Assumptions, kinds: Mapping[str, Kind]) -> Iterator[str]:
    """What goes in, a Markdown table."""
    values = {one: f"{getattr(given, one.name):,g}" for one in fields(given)}
    for one in fields(Kind):
        values[one] = ", ".join(f"{name} {getattr(kind, one.name):,g}" for name, kind in kinds.items())
    yield "| option | value | | from |\n|---|---|---|---|"
    for one, value in values.items():
        yield f"| `{_option(one.name)}` | {value} | {one.metadata['meaning']} | {one.metadata['source']} |"


def paper_table(given: Assumptions, kinds: Mapping[str, Kind], models: Sequence[str]) -> Iterator[str]:
    """What each stage alone lets through, and from how many chips on the driver is the slowest, a Markdown table."""
    stages = ("reader", "object store", "tokenising", "engine", "chips", "driver")
    yield f"| model | host | {' | '.join(stages)} | driver from |\n|---|---{'|---' * len(stages)}|---|"
    for model in models:
        for name, kind in kinds.items():
            job = make_job(given, kind, MODELS[model], HOST)
            rates = {one.name: given.block_rows * one.servers / one.seconds for one in job.stages}
            slowest = min(rate for stage, rate in rates.items() if stage != "driver")
            cells = " | ".join(_three(rates[stage]) for stage in stages)
            yield f"| {model} | {HOST} × {name} | {cells} | {_three(HOST * rates['driver'] / slowest)} chips |"


def chips_table(
    given: Assumptions, kind: Kind, name: str, models: Sequence[str], chips: Sequence[int]
) -> Iterator[str]:
    """From one chip to many, a Markdown table."""
    yield "| model | chips | tokens/s | passages/s | hours | cost | limit (busy) |\n|---|---|---|---|---|---|---|"
    for model in models:
        for count in chips:
            if count < least_chips(name, model):
                yield f"| {model} | {count} | does not fit | | | | |"
                continue
            found = run(given, kind, MODELS[model], count)
            cells = (
                f"{_three(found.tokens)} | {_three(found.passages)} | {found.seconds / 3600:,.1f} | ${found.cost:,.0f}"
            )
            yield f"| {model} | {count} | {cells} | {found.limit} |"


def mfu_table(given: Assumptions, kinds: Mapping[str, Kind], models: Sequence[str], chips: int) -> Iterator[str]:
    """What the assumed MFU does to the cost, a Markdown table."""
    heads = " | ".join(f"MFU {mfu:g}: passages/s, cost, limit" for mfu in MFUS)
    yield f"| model | chips | {heads} |\n|---|---|{'---|' * len(MFUS)}"
    for model in models:
        for name, kind in kinds.items():
            found = [run(replace(given, mfu=mfu), kind, MODELS[model], chips) for mfu in MFUS]
            cells = " | ".join(f"{_three(one.passages)}, ${one.cost:,.0f}, {one.limit}" for one in found)
            yield f"| {model} | {chips} × {name} | {cells} |"


def _three(number: float) -> str:
    """Three digits: the assumptions have no more."""
    return f"{float(f'{number:.3g}'):,.0f}"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=SHAPES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--chips", nargs="+", type=int, default=CHIPS)
    parser.add_argument(
        "--measure", nargs="*", metavar="WHAT", help="measure the defaults here instead, or some of them"
    )
    for one in fields(Assumptions):
        parser.add_argument(
            _option(one.name), type=type(one.default), default=one.default, help=one.metadata["meaning"]
        )
    for one in fields(Kind):
        parser.add_argument(_option(one.name), type=float, help=f"of each kind: a chip's {one.metadata['meaning']}")
    values = vars(parser.parse_args(arguments))
    if values["measure"] is not None:
        from benchmarks import scale_measure

        return scale_measure.main(values["measure"])
    given = Assumptions(**{one.name: values[one.name] for one in fields(Assumptions)})
    chosen = {one.name: values[one.name] for one in fields(Kind) if values[one.name] is not None}
    kinds = {name: replace(KINDS[name], **chosen) for name in values["kinds"]}
    print("\n".join(assumptions_table(given, kinds)))
    print(f"\nPassages/s of each stage, MFU {given.mfu:g} assumed:\n")
    print("\n".join(paper_table(given, kinds, values["models"])))
    for name, kind in kinds.items():
        print(f"\n{name}, MFU {given.mfu:g} assumed:\n")
        print("\n".join(chips_table(given, kind, name, values["models"], values["chips"])))
    print("\nThe same at other MFUs:\n")
    print("\n".join(mfu_table(given, kinds, values["models"], max(values["chips"]))))


if __name__ == "__main__":
    main()
