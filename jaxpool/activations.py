"""Which last step a classifier's own files ask for. Only names of a fixed table: nothing is imported by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PREFIX = "torch.nn.modules."
# The classes of torch that checkpoints name, with or without their module.
_CLASSES = {
    "Identity": "identity",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
}
_MODULES = ("", "activation.", "linear.")
_BY_PROBLEM = {"regression": "identity", "multi_label_classification": "sigmoid"}


def by_labels(labels: int) -> str:
    """What stands where the files say nothing: one class is a probability of its own."""
    return "softmax" if labels > 1 else "sigmoid"


def by_name(name: object, source: str) -> str:
    """The last step of a torch class's name.

    Raises:
        ValueError: not a name of `torch.nn.modules`, or one that jaxpool does not know.
    """
    text = str(name)
    if not text.startswith(_PREFIX):
        raise ValueError(f"{source} is {name!r}: loading of activation functions is restricted to {_PREFIX}*")
    module, _, kind = text.removeprefix(_PREFIX).rpartition(".")
    if f"{module}." * bool(module) not in _MODULES or kind not in _CLASSES:
        raise ValueError(f"{source} is {name!r}, expected one of {sorted(_CLASSES)} of {_PREFIX}*")
    return _CLASSES[kind]


def resolve_activation(hf: Mapping[str, Any], labels: int) -> str:
    """The last step by config.json: `problem_type`, then what sentence-transformers wrote there, then `by_labels`.

    Where vLLM makes a Sigmoid over two labels a softmax, the file's own word is followed here.

    Raises:
        ValueError: a name that is not understood.
    """
    problem = hf.get("problem_type")
    if problem == "single_label_classification":
        return by_labels(labels)
    if problem in _BY_PROBLEM:
        return _BY_PROBLEM[problem]
    if problem is not None:
        raise ValueError(f"config.json: `problem_type` is {problem!r}, which is not understood")
    saved = hf.get("sentence_transformers")
    if isinstance(saved, Mapping) and saved.get("activation_fn") is not None:
        return by_name(saved["activation_fn"], "config.json: `sentence_transformers.activation_fn`")
    older = hf.get("sbert_ce_default_activation_function")
    if older is not None:
        return by_name(older, "config.json: `sbert_ce_default_activation_function`")
    return by_labels(labels)
