"""CLIP's pictures in transformers on torch; "texts" are paths of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("transformers", "torch", "pillow")
BATCH = 32


def load(model: str, dtype: str, threads: int, cache: Path) -> Any:
    """`get_image_features` behind the checkpoint's processor, 32 pictures a batch; opening and resizing in threads."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPModel

    torch.set_num_threads(threads)
    processor = CLIPImageProcessorPil.from_pretrained(model)
    net = CLIPModel.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    pool = ThreadPoolExecutor(threads)

    def read(path: str) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(processor.preprocess([image.convert("RGB")])["pixel_values"][0])

    def encode(texts: list[str]) -> np.ndarray:
        rows = []
        pixels = pool.map(read, texts)  # a few batches ahead of the model
        for start in range(0, len(texts), BATCH):
            batch = [next(pixels) for _ in texts[start : start + BATCH]]
            with torch.inference_mode():
                features = net.get_image_features(torch.from_numpy(np.stack(batch)).to(net.dtype)).pooler_output
                rows.append(torch.nn.functional.normalize(features.float(), dim=-1).numpy())
        return np.concatenate(rows)

    return encode
