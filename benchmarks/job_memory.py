"""Resident memory of a job over a large .jsonl file into a directory of shards.

python -m benchmarks.job_memory [--gigabytes 2] [--tiny]

By itself with a model that computes nothing, since a real tokenizer would take an hour for gigabytes: what is
measured is the reading and the writing (the engine's own memory: benchmarks/stream.py). With --tiny, a tiny BERT.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.corpus import docstrings

# Of a row: long ones, since it is the input's bytes that count here.
CHARACTERS = 2000
SHARD_ROWS = 4096
LINES = 10
FAKE = f"""
import sys
from tests.job_fakes import run, use_fake_fingerprint
use_fake_fingerprint()
print(run([sys.argv[1]], sys.argv[2], shard_rows={SHARD_ROWS}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        file, output = directory / "in.jsonl", directory / "out"
        rows = _write(file, int(args.gigabytes * 1e9))
        print(f"{file.stat().st_size / 1e9:.2f} GB in {rows:,} rows")
        _watch((_tiny if args.tiny else _fake)(directory, file, output), output, rows)


def _write(file: Path, size: int) -> int:
    texts = [text[:CHARACTERS] for text in docstrings() if len(text) >= CHARACTERS]
    written = rows = 0
    with file.open("w", encoding="utf-8") as out:
        while written < size:
            # Different every time, so that none is computed for another.
            written += out.write(json.dumps({"id": rows, "text": f"{rows} {texts[rows % len(texts)]}"}) + "\n")
            rows += 1
    return rows


def _fake(directory: Path, file: Path, output: Path) -> list[str]:
    return [sys.executable, "-c", FAKE, str(file), str(output)]


def _tiny(directory: Path, file: Path, output: Path) -> list[str]:
    from tests.tiny import tiny_bert

    model = tiny_bert(directory / "model", positions=16, layers=1)
    arguments = ["embed", str(model), str(file), "-o", f"{output}/", "--shard-rows", str(SHARD_ROWS)]
    return [sys.executable, "-m", "jaxpool", *arguments]


def _watch(command: list[str], output: Path, rows: int) -> None:
    start, peak, following = time.perf_counter(), 0.0, 0
    process = subprocess.Popen(command)
    print("| rows done | resident MiB |\n|---|---|")
    while process.poll() is None:
        memory = _status(process.pid)
        peak = max(peak, memory.get("VmHWM", 0.0))
        done = min(rows, SHARD_ROWS * len(list((output / "records").glob("0*"))))
        if done > following and "VmRSS" in memory:
            print(f"| {done:,} | {memory['VmRSS']:,.0f} |", flush=True)
            following += rows // LINES
        time.sleep(0.1)
    print(f"| peak | {peak:,.0f} |\n\n{time.perf_counter() - start:.0f} s, exit status {process.returncode}")


def _status(pid: int) -> dict[str, float]:
    """MiB, by Linux's names."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    values = (line.split() for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {name.rstrip(":"): int(value) / 1024 for name, value, _ in values}


if __name__ == "__main__":
    main()
