"""TEI's endpoints, and the paths that several interfaces share, against what `LLM` answers."""

import json
import time

import numpy as np
import pytest
from starlette.testclient import TestClient

from jaxpool import LLM
from jaxpool.pooling_params import PoolingParams
from jaxpool.server.app import Settings, make_app
from jaxpool.server.limits import Limits
from jaxpool.server.serving import Serving

from .tiny import SENTENCES, tiny_bert, tiny_classifier

TEXTS = list(SENTENCES[:3])
LONG = "nobody saves seven birds " * 40


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("tei")
    prompts = {"query": "query: ", "passage": "passage: "}
    return {
        "tiny": tiny_bert(root / "tiny", layers=1, normalize=False, prompts=prompts),
        "classes": tiny_classifier(root / "classes", labels=3),
        # As cross-encoders/ms-marco's, whose files ask for no activation.
        "ranker": tiny_classifier(root / "ranker", labels=1, activation="Identity"),
    }


def load(directory):
    overrides = {"is_matryoshka": True} if directory.name == "tiny" else None
    return LLM(directory, hf_overrides=overrides, max_num_batched_tokens=256)


@pytest.fixture(scope="module")
def llms(directories):
    found = {name: load(directory) for name, directory in directories.items()}
    yield found
    for llm in found.values():
        llm.close()


@pytest.fixture(scope="module")
def client(directories):
    servings = [Serving(load(directory), (name,), Limits()) for name, directory in directories.items()]
    with TestClient(make_app(servings, Settings(warm=False)), raise_server_exceptions=False) as client:
        yield client


def ask(client, path, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client, path, status=400, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["message"] == answer.json()["error"]["message"]
    return answer.json()["message"]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def near(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_embed_normalises_unless_told_not_to(client, llms):
    raw = llms["tiny"].embed_array(TEXTS)
    assert np.abs(np.linalg.norm(raw, axis=-1) - 1).min() > 0.1
    near(ask(client, "/embed", inputs=TEXTS), unit(raw))
    near(ask(client, "/embed", inputs=TEXTS, normalize=False), raw)
    near(ask(client, "/embed", inputs=TEXTS[0]), unit(raw[:1]))


def test_embed_takes_ids_prompts_and_dimensions(client, llms):
    ids = llms["tiny"].engine.tokenizer.encode([TEXTS[0]], 64)[0].ids.tolist()
    raw = llms["tiny"].embed_array(TEXTS[0])
    near(ask(client, "/embed", inputs=ids), unit(raw))
    near(ask(client, "/embed", inputs=[ids, ids]), unit(raw[[0, 0]]))
    prompted = llms["tiny"].embed_array(TEXTS, prompt_name="passage")
    near(ask(client, "/embed", inputs=TEXTS, prompt_name="passage"), unit(prompted))
    short = llms["tiny"].embed_array(TEXTS, pooling_params=PoolingParams(dimensions=8, normalize=True))
    near(ask(client, "/embed", inputs=TEXTS, dimensions=8), short)
    assert "prompt_name is 'x'" in refused(client, "/embed", 422, inputs=TEXTS, prompt_name="x")


@pytest.mark.parametrize(
    ("told", "side"),
    [
        ({}, "right"),
        ({"truncate": True, "truncation_direction": "Left"}, "left"),
        ({"truncation_direction": "right"}, "right"),
    ],
)
def test_long_texts_are_cut_and_it_is_said(client, llms, told, side):
    answer = client.post("/embed", json={"inputs": [LONG, "hello"], **told})
    how = {"truncate_prompt_tokens": -1, "truncation_side": side}
    (expected,) = llms["tiny"].embed(LONG, tokenization_kwargs=how, use_tqdm=False)
    near(answer.json()[0], unit(np.asarray(expected.outputs.embedding)))
    assert answer.headers["x-truncated-texts"] == "1"


def test_long_texts_are_refused_if_they_may_not_be_cut(client):
    assert "maximum context length" in refused(client, "/embed", 422, inputs=LONG, truncate=False)
    assert "maximum context length" in refused(client, "/predict", 422, model="classes", inputs=LONG, truncate=False)


def test_embed_all(client, llms):
    raw = PoolingParams(normalize=False)
    outputs = llms["tiny"].encode(TEXTS, raw, pooling_task="token_embed", use_tqdm=False)
    found = ask(client, "/embed_all", inputs=TEXTS)
    assert [len(rows) for rows in found] == [len(output.prompt_token_ids) for output in outputs]
    for rows, output in zip(found, outputs, strict=True):
        near(rows, output.outputs.data)


def test_embed_sparse_is_refused(client):
    assert "Sparse" in refused(client, "/embed_sparse", inputs="hello")


def test_predict(client, llms):
    found = ask(client, "/predict", model="classes", inputs=TEXTS[0])
    (expected,) = llms["classes"].classify(TEXTS[0], use_tqdm=False)
    assert [item["label"] for item in found] == [f"LABEL_{i}" for i in np.argsort(-np.asarray(expected.outputs.probs))]
    near([item["score"] for item in found], sorted(expected.outputs.probs, reverse=True))
    assert sum(item["score"] for item in found) == pytest.approx(1)


def test_predict_raw(client, llms):
    (raw,) = llms["classes"].classify(TEXTS[0], pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    found = ask(client, "/predict", model="classes", inputs=[TEXTS[0]], raw_scores=True)
    near([item["score"] for item in found], sorted(raw.outputs.probs, reverse=True))


def test_predict_of_several_and_of_pairs(client, llms):
    found = ask(client, "/predict", model="ranker", inputs=[[TEXTS[0]], [TEXTS[0], TEXTS[1]], [TEXTS[2]]])
    assert [len(item) for item in found] == [1, 1, 1]
    one, two = llms["ranker"].classify([TEXTS[0], TEXTS[2]], use_tqdm=False)
    (pair,) = llms["ranker"].score(TEXTS[0], TEXTS[1], use_tqdm=False)
    expected = [one.outputs.probs[0], pair.outputs.score, two.outputs.probs[0]]
    near([item[0]["score"] for item in found], expected)
    # As TEI reads it, two texts in one list are a pair.
    (alone,) = ask(client, "/predict", model="ranker", inputs=TEXTS[:2])
    assert alone["score"] == pytest.approx(pair.outputs.score, abs=2e-5)


@pytest.mark.parametrize("inputs", [TEXTS, [TEXTS], [[]], 5, [["a"], "b"]])
def test_predict_refuses_what_is_neither(client, inputs):
    assert "inputs" in refused(client, "/predict", model="classes", inputs=inputs)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": "\ud800"}),
        ("/predict", {"model": "classes", "inputs": "\ud800"}),
        ("/predict", {"model": "classes", "inputs": ["a", "\ud800"]}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["\ud800"]}}),
        ("/rerank", {"model": "ranker", "query": "a", "texts": ["\ud800"], "return_text": True}),
        ("/v2/embed", {"texts": ["\ud800"]}),
        ("/v2/embed", {"texts": ["a"], "input_type": "\ud800"}),
        ("/invocations", {"\ud800": "a"}),
    ],
)
def test_half_a_character_is_refused(client, path, body):
    content = json.dumps(body).encode()
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text


def test_similarity(client, llms):
    body = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    vectors = unit(llms["tiny"].embed_array(TEXTS))
    near(ask(client, "/similarity", inputs=body), vectors @ vectors[0])
    prompted = unit(llms["tiny"].embed_array(TEXTS, prompt_name="query"))
    near(ask(client, "/similarity", inputs=body, parameters={"prompt_name": "query"}), prompted @ prompted[0])
    assert "At least one" in refused(client, "/similarity", inputs=body | {"sentences": []})
    assert "maximum context" in refused(
        client, "/similarity", 422, inputs=body | {"sentences": [LONG]}, parameters={"truncate": False}
    )


@pytest.mark.parametrize("raw", [False, True])
def test_rerank_by_texts(client, llms, raw):
    found = ask(client, "/rerank", model="ranker", query="who?", texts=TEXTS, raw_scores=raw, return_text=raw)
    scores = [output.outputs.score for output in llms["ranker"].score("who?", TEXTS, use_tqdm=False)]
    order = np.argsort(-np.asarray(scores))
    assert [item["index"] for item in found] == order.tolist()
    assert [item.get("text") for item in found] == [TEXTS[i] if raw else None for i in order]
    near([item["score"] for item in found], np.asarray(scores if raw else sigmoid(scores))[order])


def test_rerank_with_embeddings_gives_cosines(client, llms):
    found = ask(client, "/rerank", query=TEXTS[0], texts=TEXTS)
    scores = [output.outputs.score for output in llms["tiny"].score(TEXTS[0], TEXTS, use_tqdm=False)]
    near([item["score"] for item in found], sorted(scores, reverse=True))


def test_rerank_by_documents_is_jinas_still(client):
    bodies = [
        ask(client, path, model="ranker", query="who?", documents=TEXTS, top_n=2) for path in ("/rerank", "/v1/rerank")
    ]
    assert bodies[0]["results"] == bodies[1]["results"]
    assert len(bodies[0]["results"]) == 2
    assert "documents" in refused(client, "/rerank", model="ranker", query="who?")
    assert "query" in refused(client, "/rerank", model="ranker", documents=TEXTS)
    assert "At least one" in refused(client, "/rerank", model="ranker", query="who?", texts=[])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("tiny", "embedding"), ("classes", "classifier"), ("ranker", "reranker")],
)
def test_info(client, name, kind):
    found = client.get("/info", params={"model": name}).json()
    assert found["model_id"] == name
    assert found["model_dtype"] == "float32"
    assert found["max_input_length"] == 64
    assert found["max_client_batch_size"] == 4096
    assert found["max_batch_tokens"] >= 64
    assert found["version"]
    ((said, what),) = found["model_type"].items()
    assert said == kind
    count = {"embedding": 0, "classifier": 3, "reranker": 1}[kind]
    labels = {str(i): f"LABEL_{i}" for i in range(count)}
    numbers = {label: int(i) for i, label in labels.items()}
    assert what == ({"id2label": labels, "label2id": numbers} if count else {"pooling": "mean"})


def test_decode(client, llms):
    tokenizer = llms["tiny"].engine.tokenizer
    ids = tokenizer.encode(["hello my name"], 64)[0].ids.tolist()
    assert ask(client, "/decode", ids=ids) == ["hello my name"]
    assert ask(client, "/decode", ids=[ids, ids[:2]]) == ["hello my name", "hello"]
    (kept,) = ask(client, "/decode", ids=ids, skip_special_tokens=False)
    assert kept.startswith("[CLS]")
    assert "out of vocabulary" in refused(client, "/decode", 422, ids=[-1])


def test_tokenize(client, llms):
    tokenizer = llms["tiny"].engine.tokenizer
    (tokens,) = ask(client, "/tokenize", inputs="Hello my name")
    assert [token["id"] for token in tokens] == tokenizer.encode(["Hello my name"], 64)[0].ids.tolist()
    assert tokens[0] == {"id": tokens[0]["id"], "text": "[CLS]", "special": True, "start": None, "stop": None}
    inner = tokens[1:-1]
    assert inner[0]["text"] == "Hello"  # as the text has it, not as the vocabulary
    assert all(token["text"] == "Hello my name"[token["start"] : token["stop"]] for token in inner)
    both = ask(client, "/tokenize", inputs=["my", "name"], add_special_tokens=False)
    assert [[token["text"] for token in one] for one in both] == [["my"], ["name"]]
    (prompted,) = ask(client, "/tokenize", inputs="my", prompt_name="query")
    assert [token["text"] for token in prompted[1:3]] == ["query", ":"]
    assert "prompt_name" in refused(client, "/tokenize", inputs="my", prompt_name="gone")
    assert "`inputs`" in refused(client, "/tokenize", inputs="my", prompt="my")


@pytest.mark.parametrize(
    ("model", "path", "body", "said"),
    [
        ("classes", "/embed", {"inputs": "x"}, "The model does not support Embeddings API"),
        ("classes", "/embed_all", {"inputs": "x"}, "The model does not support Embeddings API"),
        ("classes", "/similarity", {"inputs": {"source_sentence": "x", "sentences": ["y"]}}, "The model does not support Embeddings API"),
        ("tiny", "/predict", {"inputs": "x"}, "The model does not support Classification API"),
        ("classes", "/rerank", {"query": "x", "texts": ["y"]}, "The model does not support Rerank (Score) API"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_do_is_said_in_vllms_words(client, model, path, body, said):
    assert refused(client, path, model=model, **body).startswith(said)


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/embed", {"inputs": []}, 400, "Empty"),
        ("/rerank", {"model": "ranker", "query": "a", "texts": []}, 400, "Empty"),
        ("/predict", {"model": "classes", "inputs": []}, 400, "Empty"),
        ("/", {"model": "classes", "inputs": []}, 400, "Empty"),
        ("/embed", {"inputs": ["a"] * 9}, 422, "Validation"),
        ("/embed_all", {"inputs": ["a"] * 9}, 422, "Validation"),
        ("/predict", {"model": "classes", "inputs": [["a"]] * 9}, 422, "Validation"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["a"] * 9}}, 422, "Validation"),
        ("/rerank", {"model": "ranker", "query": "a", "texts": ["a"] * 9}, 422, "Validation"),
        ("/", {"inputs": ["a"] * 9}, 422, "Validation"),
        ("/invocations", {"inputs": ["a"] * 9}, 422, "Validation"),
        ("/embed", {"inputs": [[10**6]]}, 422, "Validation"),
        ("/decode", {"ids": [10**6]}, 422, "Tokenizer"),
        ("/embed", {"inputs": 5}, 400, "Validation"),
        ("/v1/embeddings", {"input": ["a"] * 9}, 413, "Validation"),  # vLLM's path
    ],
)
def test_statuses(directories, client, path, body, status, kind, monkeypatch):
    for serving in client.app.state.models:
        monkeypatch.setattr(serving, "limits", Limits(texts=8))
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)
    assert answer.json()["error"]["code"] == status
    assert "x-total-time" not in answer.headers


@pytest.mark.parametrize(
    ("path", "body", "characters"),
    [
        ("/embed", {"inputs": ["hello", "my né"]}, 10),
        ("/embed_all", {"inputs": "hello"}, 5),
        ("/embed", {"inputs": [[5, 6], [7]]}, None),
        ("/predict", {"model": "ranker", "inputs": [["ab", "cde"], ["f"]]}, 6),
        ("/similarity", {"inputs": {"source_sentence": "ab", "sentences": ["c", "d"]}}, 4),
        ("/rerank", {"model": "ranker", "query": "ab", "texts": ["c", "de"]}, 7),
    ],
)
def test_headers_tell_what_was_computed(client, path, body, characters):
    start = time.perf_counter()
    headers = client.post(path, json=body).headers
    passed = 1000 * (time.perf_counter() - start)
    assert headers["x-compute-type"] == "cpu"
    assert 0 <= int(headers["x-total-time"]) <= passed + 1
    assert headers["x-compute-time"] == headers["x-total-time"]
    assert headers.get("x-compute-characters") == (None if characters is None else str(characters))
    assert int(headers["x-compute-tokens"]) >= 3
    if path == "/embed_all":
        rows = client.post(path, json=body).json()
        assert headers["x-compute-tokens"] == str(len(rows[0]))
    assert not {"x-queue-time", "x-inference-time", "x-tokenization-time"} & headers.keys()  # requests share batches


def test_the_root_is_the_endpoint_of_the_models_task(client):
    for model, path, body in (
        ("tiny", "/embed", {"inputs": TEXTS, "normalize": False}),
        ("classes", "/predict", {"inputs": TEXTS[0]}),
        ("ranker", "/rerank", {"query": "who?", "texts": TEXTS}),
    ):
        assert ask(client, "/", model=model, **body) == ask(client, path, model=model, **body)
    assert "no endpoint" in refused(client, "/", query="who?", documents=TEXTS)
    assert client.get("/").headers["content-type"].startswith("text/html")


def test_the_document_has_the_bodies_of_shared_paths(client):
    document = client.get("/openapi.json").json()
    names = {}
    for path in ("/rerank", "/invocations", "/"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        names[path] = {kind["title"] for kind in schema["anyOf"]}
        assert all(kind["properties"] for kind in schema["anyOf"])
    assert names["/rerank"] == {"RerankBody", "TeiRerankBody"}
    assert names["/"] == {"EmbedBody", "EmbedAllBody", "PredictBody", "TeiRerankBody"}
    assert names["/invocations"] > {*names["/rerank"], *names["/"], "EmbeddingBody", "CohereBody", "ScoreBody"}


def test_models_that_are_not_there(client):
    for path, body in (("/embed", {"inputs": "x"}), ("/rerank", {"query": "x", "texts": ["y"]}), ("/invocations", {})):
        assert client.post(path, json={"model": "gone", **body}).status_code == 404


SHAPES = [
    ("tiny", {"input": TEXTS}, "/v1/embeddings"),
    ("tiny", {"input": TEXTS, "task": "token_embed"}, "/pooling"),
    ("tiny", {"texts": TEXTS, "input_type": "query"}, "/v2/embed"),
    ("tiny", {"inputs": [{"content": [{"type": "text", "text": "x"}]}], "input_type": "query"}, "/v2/embed"),
    ("tiny", {"inputs": TEXTS}, "/embed"),
    ("classes", {"input": TEXTS}, "/classify"),
    ("classes", {"inputs": [TEXTS[:1]]}, "/predict"),
    ("ranker", {"query": "x", "documents": TEXTS}, "/rerank"),
    ("ranker", {"query": "x", "texts": TEXTS}, "/rerank"),
    ("ranker", {"queries": "x", "documents": TEXTS}, "/score"),
    ("ranker", {"data_1": "x", "data_2": TEXTS}, "/score"),
    ("ranker", {"text_1": "x", "text_2": TEXTS}, "/score"),
]


@pytest.mark.parametrize(("model", "body", "path"), SHAPES)
def test_invocations_go_where_their_fields_say(client, model, body, path):
    found, expected = (ask(client, where, model=model, **body) for where in ("/invocations", path))
    for answer in (found, expected):
        if isinstance(answer, dict):
            assert answer.pop("id")
            answer.pop("created", None)
    assert found == expected


@pytest.mark.parametrize(
    ("body", "said"),
    [({}, "no endpoint"), ({"prompt": "x"}, "['prompt']"), ({"input": None}, "no endpoint"), ({"input": 5.5}, "input")],
)
def test_invocations_that_are_nobodys(client, body, said):
    assert said in refused(client, "/invocations", **body)
