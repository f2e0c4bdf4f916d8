"""A model's transformer as ONNX, in float32 or with its products in dynamic int8; written once, kept in the cache."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.machine import flags


def exported(model: Path, dtype: str, cache: Path) -> Path:
    """The .onnx file of a model directory, kept in a folder of the model's own."""
    folder = cache / dtype
    if not folder.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if dtype == "int8":
            _quantize(exported(model, "float32", cache), part / "model.onnx")
        else:
            _export(model, part / "model.onnx")
        part.rename(folder)
    return folder / "model.onnx"


def _export(model: Path, file: Path) -> None:
    import torch
    from transformers import AutoModel

    class Transformer(torch.nn.Module):
        """Hidden states alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            cached = {"use_cache": False} if self.model.config.model_type == "qwen3" else {}
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **cached).last_hidden_state

    ids = torch.ones(2, 16, dtype=torch.int64)
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=512)}
    torch.onnx.export(
        Transformer(),
        (ids, torch.ones_like(ids)),
        file,
        dynamo=True,
        external_data=True,
        input_names=["input_ids", "attention_mask"],
        output_names=["hidden"],
        dynamic_shapes=(axes, axes),
    )


def _quantize(source: Path, file: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Without VNNI, products of unsigned by signed bytes saturate: unsigned weights, as optimum has it for AVX2.
    signed = any("vnni" in flag for flag in flags())
    kind = QuantType.QInt8 if signed else QuantType.QUInt8
    quantize_dynamic(source, file, weight_type=kind, per_channel=True, use_external_data_format=True)
