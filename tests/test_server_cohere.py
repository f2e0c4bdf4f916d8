"""Cohere's `/v2/embed` and `/v2/rerank`, against what `LLM` answers, and through Cohere's own client."""

import base64
import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from starlette.testclient import TestClient

from jaxpool import LLM
from jaxpool.pooling_params import PoolingParams
from jaxpool.recipe import read_recipe
from jaxpool.server.app import Settings, make_app
from jaxpool.server.cohere_protocol import encode, prompt_name
from jaxpool.server.errors import ApiError
from jaxpool.server.limits import Limits
from jaxpool.server.serving import Serving

from .tiny import SENTENCES, tiny_bert, tiny_classifier, tiny_jina

TEXTS = list(SENTENCES[:3])
LONG = "nobody saves seven birds " * 40
PROMPTS = {"query": "query: ", "passage": "document search: ", "sts": "hello, "}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("cohere") / "m", layers=1, prompts=PROMPTS)


@pytest.fixture(scope="module")
def llm(directory):
    with LLM(directory, hf_overrides={"is_matryoshka": True}) as llm:
        yield llm


@pytest.fixture(scope="module")
def recipe(directory):
    return read_recipe(directory)


def app_over(*servings):
    return make_app(servings, Settings(warm=False))


@pytest.fixture(scope="module")
def app(directory, tmp_path_factory):
    ranker = tiny_classifier(tmp_path_factory.mktemp("cohere") / "r", labels=1)
    embedder = LLM(directory, hf_overrides={"is_matryoshka": True})
    return app_over(Serving(embedder, ("tiny",), Limits()), Serving(LLM(ranker), ("ranker",), Limits()))


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def embed(client, **body):
    answer = client.post("/v2/embed", json={"model": "tiny", "texts": TEXTS, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client, **body):
    answer = client.post("/v2/embed", json={"model": "tiny", **body})
    assert answer.status_code == 400, answer.text
    return answer.json()["message"]


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [(None, ""), ("search_query", "query: "), ("search_document", "document search: "), ("sts", "hello, ")],
)
def test_input_type_chooses_the_prompt(client, llm, input_type, prompt):
    found = embed(client, input_type=input_type)
    expected = llm.embed_array(TEXTS, prompt=prompt)
    np.testing.assert_allclose(found["embeddings"]["float"], expected, atol=1e-5)
    assert list(found["embeddings"]) == ["float"]
    assert found["texts"] == TEXTS
    tokens = sum(len(llm.engine.tokenizer.encode([prompt + text], 64)[0].ids) for text in TEXTS)
    assert found["meta"] == {
        "api_version": {"version": "2"},
        "billed_units": {"input_tokens": tokens, "image_tokens": 0},
    }
    assert found["response_type"] == "embeddings_by_type"


def test_an_unknown_input_type_is_told_which_there_are(client):
    message = refused(client, texts=TEXTS, input_type="clustering")
    assert "'clustering'" in message
    for known in ("search_query", "search_document", "query", "passage", "sts"):
        assert known in message


@pytest.mark.parametrize(
    ("prompts", "input_type", "name"),
    [
        ({}, "search_query", None),  # nothing to choose from: Cohere's words are fine
        ({}, "classification", None),
        ({"query": "", "document": ""}, "clustering", None),  # sentence-transformers names these two unasked
        ({"query": "", "document": ""}, "search_document", "document"),
        ({"query": "q: ", "passage": "p: ", "document": ""}, "search_document", "passage"),
        ({"query": "q: "}, "search_document", None),  # one side of a search has a prompt
        ({"search_document": "d: ", "document": "x: "}, "search_document", "search_document"),
        ({"clustering": "c: "}, "clustering", "clustering"),
    ],
)
def test_prompts_of_other_checkpoints(recipe, prompts, input_type, name):
    assert prompt_name(replace(recipe, prompts=prompts), input_type) == name


@pytest.mark.parametrize(
    ("prompts", "input_type"),
    [({}, "sts"), ({"query": "q: "}, "classification"), ({"clustering": "c: "}, "search_query")],
)
def test_prompts_that_checkpoints_lack(recipe, prompts, input_type):
    with pytest.raises(ApiError, match="Unsupported input_type") as caught:
        prompt_name(replace(recipe, prompts=prompts), input_type)
    assert all(name in caught.value.message for name in prompts)


def test_an_adapter_comes_with_its_prompt(tmp_path):
    llm = LLM(tiny_jina(tmp_path / "m"))
    prompt = llm.recipe.prompts["retrieval.query"]
    expected = llm.embed_array(TEXTS, prompt=prompt, pooling_params=PoolingParams(adapter="retrieval.query"))
    assert np.abs(expected - llm.embed_array(TEXTS, prompt=prompt)).max() > 1e-3
    with TestClient(app_over(Serving(llm, ("tiny",), Limits()))) as client:
        found = embed(client, input_type="search_query")["embeddings"]["float"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_several_types_at_once(client):
    kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64", "float"]
    found = embed(client, embedding_types=kinds)["embeddings"]
    assert set(found) == set(kinds)
    x = np.asarray(found["float"], np.float32)
    assert np.array_equal(np.stack([np.frombuffer(base64.b64decode(b), "<f4") for b in found["base64"]]), x)
    assert np.array_equal(found["int8"], np.rint(x / np.linalg.norm(x, axis=1, keepdims=True) * 127))
    assert np.array_equal(found["uint8"], np.asarray(found["int8"]) + 128)
    bits = ["".join("1" if value >= 0 else "0" for value in row) for row in x]
    packed = [[int(row[i : i + 8], 2) for i in range(0, len(row), 8)] for row in bits]
    assert found["ubinary"] == packed
    assert found["binary"] == [[byte - 128 for byte in row] for row in packed]


def test_no_type_is_float(client):
    assert list(embed(client, embedding_types=[])["embeddings"]) == ["float"]


def test_integers_do_not_overflow():
    x = np.asarray([[3, 0, 0, 0], [-3, 0, 0, 0], [0, 0, 0, 0], [1, -1, 1, -1]], np.float32)
    assert encode(x, "int8").tolist() == [[127, 0, 0, 0], [-127, 0, 0, 0], [0, 0, 0, 0], [64, -64, 64, -64]]
    assert encode(x, "uint8").tolist() == [[255, 128, 128, 128], [1, 128, 128, 128], [128] * 4, [192, 64, 192, 64]]
    assert encode(np.ones((1, 8), np.float32), "binary").tolist() == [[127]]
    assert encode(-np.ones((1, 8), np.float32), "binary").tolist() == [[-128]]


def test_output_dimension(client, llm):
    found = embed(client, output_dimension=8, embedding_types=["float", "ubinary"])["embeddings"]
    expected = llm.embed_array(TEXTS, pooling_params=PoolingParams(dimensions=8))
    np.testing.assert_allclose(found["float"], expected, atol=1e-5)
    assert np.shape(found["ubinary"]) == (3, 1)
    embed(client, output_dimension=12)
    message = refused(client, texts=TEXTS, output_dimension=12, embedding_types=["float", "binary"])
    assert "multiple of 8" in message
    assert "binary" in message
    assert "12" in message


@pytest.mark.parametrize(("truncate", "side"), [(None, "right"), ("END", "right"), ("START", "left")])
@pytest.mark.parametrize("max_tokens", [None, 9, 1000])
def test_long_texts_are_cut_where_it_says(client, llm, truncate, side, max_tokens):
    told = {} if truncate is None else {"truncate": truncate}
    answer = client.post(
        "/v2/embed", json={"model": "tiny", "texts": [LONG, "hello"], "max_tokens": max_tokens, **told}
    )
    limit = min(max_tokens or 64, 64)
    how = {"truncate_prompt_tokens": limit, "truncation_side": side}
    (expected, _) = llm.embed([LONG, "hello"], tokenization_kwargs=how, use_tqdm=False)
    found = answer.json()
    np.testing.assert_allclose(found["embeddings"]["float"][0], expected.outputs.embedding, atol=1e-5)
    assert found["meta"]["billed_units"]["input_tokens"] == limit + 3
    assert found["meta"]["warnings"] == ["1 of 2 texts were too long and have been cut"]
    assert answer.headers["x-truncated-texts"] == "1"


@pytest.mark.parametrize("max_tokens", [None, 9])
def test_none_cuts_nothing(client, max_tokens):
    assert "maximum context length" in refused(client, texts=[LONG], truncate="NONE", max_tokens=max_tokens)
    embed(client, texts=["hello"], truncate="NONE", max_tokens=max_tokens)


def test_inputs_of_texts(client, llm):
    parts = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    found = embed(client, texts=None, inputs=parts)
    assert found["texts"] == TEXTS
    np.testing.assert_allclose(found["embeddings"]["float"], llm.embed_array(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "exactly one"),
        ({"texts": TEXTS, "inputs": []}, "exactly one"),
        ({"images": ["data:image/png;base64,"]}, "takes texts only"),
        ({"inputs": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "takes texts only"),
        ({"inputs": [{"text": "x"}]}, "inputs[0]"),
        ({"texts": []}, "at least one prompt"),
        ({"texts": "hello"}, "texts"),
        ({"texts": TEXTS, "embedding_types": ["int4"]}, "embedding_types"),
        ({"texts": TEXTS, "truncate": "MIDDLE"}, "truncate"),
        ({"texts": TEXTS, "output_dimension": 1000}, "1000"),
        ({"texts": TEXTS, "max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_refused(client, body, said):
    assert said in refused(client, **body)


def test_a_classifier_has_no_embeddings(client):
    answer = client.post("/v2/embed", json={"model": "ranker", "texts": TEXTS})
    assert answer.status_code == 400
    assert answer.json()["message"] == "The model does not support Embeddings API"


@pytest.fixture
def address(app, client):
    """Of a server on a socket; `client` keeps its models alive."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def test_coheres_own_client(address, llm):
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key="none", base_url=address)
    kinds = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    found = client.embed(model="tiny", texts=TEXTS, input_type="search_query", embedding_types=kinds)
    expected = llm.embed_array(TEXTS, prompt="query: ")
    np.testing.assert_allclose(found.embeddings.float_, expected, atol=1e-5)
    for kind in ("int8", "uint8", "binary", "ubinary"):
        assert np.shape(getattr(found.embeddings, kind)) == (3, 4 if "binary" in kind else 32)
    assert len(found.embeddings.base64) == 3
    assert found.texts == TEXTS
    assert found.meta.api_version.version == "2"
    assert found.meta.billed_units.input_tokens > 0
    assert found.response_type == "embeddings_by_type"
    with pytest.raises(cohere.BadRequestError) as caught:
        client.embed(model="tiny", texts=TEXTS, input_type="image")
    assert "Unsupported input_type" in json.dumps(caught.value.body)
    ranked = client.rerank(model="ranker", query="who?", documents=TEXTS, top_n=2)
    assert len(ranked.results) == 2
    scores = [result.relevance_score for result in ranked.results]
    assert scores == sorted(scores, reverse=True)
    assert all(isinstance(result.index, int) for result in ranked.results)
    assert ranked.id.startswith("rerank-")
    assert ranked.meta.api_version.version == "2"
    assert ranked.meta.billed_units.search_units == 1
    assert ranked.meta.billed_units.input_tokens > 0


def test_coheres_older_client(address, llm):
    cohere = pytest.importorskip("cohere")
    client = cohere.Client(api_key="none", base_url=address)
    many = [f"{text} {number}" for number in range(40) for text in TEXTS]  # the client sends them in two requests
    found = client.embed(model="tiny", texts=many, input_type="search_query")
    assert found.response_type == "embeddings_floats"
    np.testing.assert_allclose(found.embeddings, llm.embed_array(many, prompt="query: "), atol=1e-5)
    assert found.texts == many
    assert found.meta.api_version.version == "1"
    assert found.meta.billed_units.input_tokens > len(many)
    typed = client.embed(model="tiny", texts=TEXTS, input_type="search_query", embedding_types=["int8", "float"])
    assert typed.response_type == "embeddings_by_type"
    np.testing.assert_allclose(typed.embeddings.float_, llm.embed_array(TEXTS, prompt="query: "), atol=1e-5)
    assert np.shape(typed.embeddings.int8) == (3, 32)
    ranked = client.rerank(model="ranker", query="who?", documents=[*TEXTS, {"text": "hello"}], return_documents=True)
    assert [result.document.text for result in ranked.results] == [
        [*TEXTS, "hello"][result.index] for result in ranked.results
    ]
    assert ranked.meta.api_version.version == "1"
    with pytest.raises(cohere.BadRequestError, match="rank_fields"):
        client.rerank(model="ranker", query="who?", documents=[{"text": "a", "title": "b"}], rank_fields=["title"])


@pytest.mark.parametrize(("path", "version"), [("/v1/rerank", "1"), ("/v2/rerank", "2"), ("/rerank", None)])
@pytest.mark.parametrize(("documents", "units"), [(1, 1), (100, 1), (101, 2)])
def test_what_a_ranking_is_billed_as(client, path, version, documents, units):
    body = {"model": "ranker", "query": "who?", "documents": ["hello"] * documents}
    found = client.post(path, json=body).json()
    tokens = found["usage"]["total_tokens"]
    told = {"api_version": {"version": version}, "billed_units": {"search_units": units, "input_tokens": tokens}}
    assert found.get("meta") == (told if version else None)


def test_the_older_path_names_its_answer(client):
    found = client.post("/v1/embed", json={"model": "tiny", "texts": TEXTS}, headers={"x-request-id": "mine"}).json()
    assert found["id"] == "embd-mine"
    assert found["embeddings"] == embed(client)["embeddings"]["float"]
    assert client.post("/v1/embed", json={"model": "tiny", "texts": []}).status_code == 400
