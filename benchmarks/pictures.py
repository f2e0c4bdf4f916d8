"""CLIP's image tower beside transformers' on torch, in one run: `python -m benchmarks.pictures`.

A random ViT-B/32; photographs of 640 × 480 as JPEG files, and small ones that need no resizing. Rounds are taken in
turn, each engine stopped while the other runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.workers import Worker

ENGINES = ("pictures_jaxpool", "pictures_torch")
SIZES = {"640 × 480 JPEG": (640, 480, "jpg"), "224 × 224 PNG": (224, 224, "png")}
CLIP = {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": 512,
    "text_config": {"model_type": "clip_text_model"},
    "vision_config": {"model_type": "clip_vision_model"},
}
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def write_model(directory: Path) -> Path:
    """A random checkpoint of the published model's shape."""
    from tokenizers import Tokenizer, models, processors

    from jaxpool.converters.clip import TABLE
    from jaxpool.converters.export import write_safetensors
    from jaxpool.converters.rules import to_checkpoint
    from jaxpool.models.clip import FAMILY, config_from_hf
    from jaxpool.params import flatten, random_params

    params = random_params(FAMILY.param_specs(config_from_hf(CLIP)))
    write_safetensors(directory, "model", to_checkpoint(flatten(params), TABLE))
    (directory / "config.json").write_text(json.dumps(CLIP))
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    tokenizer = Tokenizer(models.WordLevel({"<start>": 0, "<end>": 1}, unk_token="<end>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def write_pictures(directory: Path, size: tuple[int, int, str], count: int) -> list[str]:
    """Smooth noise: what JPEG and resampling take their usual time for."""
    from PIL import Image

    width, height, ending = size
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
        files.append(directory / f"{width}-{number}.{ending}")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(files[-1])
    return [str(file) for file in files]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=192, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        model = write_model(folder / "model")
        workers = {engine: Worker(engine, sys.executable, folder / f"{engine}.log") for engine in ENGINES}
        for worker in workers.values():
            stack.callback(worker.end)
        threads = machine.describe()["cores"]
        loaded = {
            engine: worker.ask("load", model=str(model), dtype=options.dtype, threads=threads, cache=scratch)
            for engine, worker in workers.items()
        }
        print({engine: answer["versions"] for engine, answer in loaded.items()})
        print("| pictures | jaxpool/s | torch/s | ratio | largest difference |\n|---|---|---|---|---|")
        for name, size in SIZES.items():
            files = write_pictures(folder, size, options.pictures)
            rates: dict[str, list[float]] = {engine: [] for engine in ENGINES}
            saved = {engine: folder / f"{engine}.npy" for engine in ENGINES}
            for engine, worker in workers.items():
                worker.ask("encode", texts=files[:16], save=str(saved[engine]))
            for _ in range(options.rounds):
                for engine, worker in workers.items():
                    rates[engine].append(len(files) / worker.ask("encode", texts=files)["seconds"])
            ours, theirs = (statistics.median(rates[engine]) for engine in ENGINES)
            difference = np.abs(np.load(saved[ENGINES[0]]) - np.load(saved[ENGINES[1]])).max()
            print(f"| {name} | {ours:.1f} | {theirs:.1f} | **{ours / theirs:.2f}** | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
