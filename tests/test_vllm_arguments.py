"""Scripts written for vLLM: what is passed over with one warning, and what is refused."""

import logging

import pytest

from jaxpool import LLM
from jaxpool.vllm_arguments import ARGUMENTS, ENGINE, FLAG, NOTHING
from tests.tiny import tiny_bert


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


def test_a_script_runs_unchanged(directory, caplog, monkeypatch):
    monkeypatch.setattr("jaxpool.log._said", set())
    arguments = {"enforce_eager": True, "gpu_memory_utilization": 0.8, "max_num_seqs": 16, "seed": 0}
    with caplog.at_level(logging.WARNING, "jaxpool"):
        for _ in range(2):
            LLM(directory, runner="pooling", convert="embed", quantization=None, **arguments).close()
    warnings = [r.message for r in caplog.records if "change nothing" in r.message]
    assert len(warnings) == 1
    assert all(name in warnings[0] for name in arguments)
    assert "quantization" not in warnings[0]


REFUSED = [
    ({"quantization": "fp8"}, ValueError, "quantization is .fp8., expected one of"),
    ({"enable_lora": True}, ValueError, "enable_lora"),
    ({"tokenizer_revision": "v2"}, ValueError, "tokenizer_revision is 'v2': it would change the answer"),
    ({"load_format": "dummy"}, ValueError, "load_format is 'dummy', expected one of"),
    ({"middleware": ["a.b"]}, TypeError, "middleware"),  # the server's, not `LLM`'s
    ({"rope_scaling": {"factor": 2}}, ValueError, "rope_scaling"),
    ({"runner": "generate"}, ValueError, "runner is 'generate', expected one of"),
    ({"convert": "mm_encoder_only"}, ValueError, "convert is 'mm_encoder_only'"),
    ({"task": "embed", "convert": "classify"}, ValueError, "contradict each other"),
    ({"task": "generate"}, ValueError, "Unsupported task: 'generate' Supported tasks"),
    ({"no_such_thing": 1, "nor_this": 2}, TypeError, "no_such_thing, nor_this"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), REFUSED, ids=str)
def test_what_is_refused(directory, arguments, kind, message):
    with pytest.raises(kind, match=message):
        LLM(directory, **arguments)


def test_what_asks_for_nothing_is_let_through(directory, caplog, monkeypatch):
    monkeypatch.setattr("jaxpool.log._said", set())
    asked = {name: False if own.form == FLAG else None for name, own in ARGUMENTS.items() if own.may_be is NOTHING}
    engine = {name: value for name, value in asked.items() if ARGUMENTS[name].whose == ENGINE}
    assert "enable_lora" in engine
    with caplog.at_level(logging.WARNING, "jaxpool"):
        LLM(directory, **engine, load_format="pt", model_impl="transformers").close()
    assert not [r.message for r in caplog.records if "change nothing" in r.message]
