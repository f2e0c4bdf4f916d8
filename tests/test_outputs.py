"""What comes back: classes, fields, and from one form to another, in vLLM's words."""

import numpy as np
import pytest

from jaxpool import LLM
from jaxpool.outputs import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from tests.tiny import tiny_bert

VECTOR, SCALAR, TABLE = np.array([0.25, 0.5], np.float32), np.array(0.5, np.float32), np.zeros((2, 3), np.float32)
# class, request class, what it is made of, its field, its property, its repr; what it is not made of, in which words
FORMS = [
    (EmbeddingOutput, EmbeddingRequestOutput, VECTOR, {"embedding": [0.25, 0.5], "hidden_size": 2},
     "EmbeddingOutput(hidden_size=2)", TABLE, "pooled_data should be a 1-D embedding vector"),
    (ClassificationOutput, ClassificationRequestOutput, VECTOR, {"probs": [0.25, 0.5], "num_classes": 2},
     "ClassificationOutput(num_classes=2)", SCALAR, "pooled_data should be a 1-D probability vector"),
    (ScoringOutput, ScoringRequestOutput, SCALAR, {"score": 0.5},
     "ScoringOutput(score=0.5)", VECTOR, "pooled_data should be a scalar score"),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0].__name__)
def test_forms(form):
    kind, request_kind, data, values, text, wrong, message = form
    output = kind.from_base(PoolingOutput(data))
    assert {name: getattr(output, name) for name in values} == values
    assert all(type(value) is not np.ndarray for value in values.values())
    assert repr(output) == text
    assert output == kind.from_base(PoolingOutput(data.copy())) != kind.from_base(PoolingOutput(data / 2))
    with pytest.raises(ValueError, match=message):
        kind.from_base(PoolingOutput(wrong))

    base = PoolingRequestOutput("7", PoolingOutput(data), [1, 2], True, 0)
    request = request_kind.from_base(base)
    assert request == request_kind("7", output, [1, 2])
    assert request != base
    assert (request.request_id, request.prompt_token_ids, request.finished, request.num_cached_tokens) == (
        "7", [1, 2], True, 0
    )  # fmt: skip
    assert repr(request) == (
        f"{request_kind.__name__}(request_id='7', outputs={text}, prompt_token_ids=[1, 2], finished=True, "
        "num_cached_tokens=0)"
    )
    with pytest.raises(ValueError, match=message):
        request_kind.from_base(PoolingRequestOutput("7", PoolingOutput(wrong), [1]))


def test_a_score_of_one_entry_is_a_number():
    assert ScoringOutput.from_base(PoolingOutput(np.array([0.5], np.float32))).score == 0.5
    assert ScoringOutput.from_base(PoolingOutput(np.array([[0.5]], np.float32))).score == 0.5


def test_equality_of_data():
    assert PoolingOutput(VECTOR) == PoolingOutput(VECTOR.copy())
    assert PoolingOutput(VECTOR) != PoolingOutput(TABLE)
    assert PoolingOutput(VECTOR) != VECTOR.tolist()
    assert PoolingOutput(TABLE) == PoolingOutput(TABLE.copy())
    assert "PoolingOutput(data=array(" in repr(PoolingOutput(VECTOR))


def test_what_an_instance_gives(tmp_path):
    with LLM(tiny_bert(tmp_path), data_parallel_size=1, max_num_batched_tokens=64) as llm:
        pad = llm.engine.tokenizer.pad_id
        # The same text twice is computed once, and each answer is its caller's own.
        first = llm.encode(["the fox", "a dog", "the fox"], use_tqdm=False)
        second = llm.embed("a dog", use_tqdm=False)
        scores = llm.score("the fox", ["a dog", "the fox"], use_tqdm=False)
    assert [type(o) for o in (first[0], second[0], scores[0])] == [
        PoolingRequestOutput, EmbeddingRequestOutput, ScoringRequestOutput
    ]  # fmt: skip
    assert [o.request_id for o in (*first, *second)] == ["0", "1", "2", "3"]
    assert all(o.finished and o.num_cached_tokens == 0 for o in (*first, *second, *scores))
    fox, dog, again = first
    assert fox.prompt_token_ids == again.prompt_token_ids != dog.prompt_token_ids == second[0].prompt_token_ids
    assert all(type(i) is int for i in fox.prompt_token_ids)
    assert (fox.outputs.data.dtype, fox.outputs.data.shape) == (np.float32, (32,))
    assert fox.outputs == again.outputs != dog.outputs
    fox.outputs.data[:] = 0
    assert np.linalg.norm(again.outputs.data) > 0.9
    # A cosine's ids are those of both, and a padding token between.
    assert [o.request_id for o in scores] == ["4_6", "5_7"]
    assert scores[0].prompt_token_ids == [*fox.prompt_token_ids, pad, *dog.prompt_token_ids]
    assert scores[0].outputs.score == pytest.approx(float(again.outputs.data @ dog.outputs.data), abs=1e-6)
    assert scores[1].outputs.score == pytest.approx(1, abs=1e-6)
