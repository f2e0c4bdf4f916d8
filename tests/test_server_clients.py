"""Clients as people use them, against a server on loopback: OpenAI's, LangChain's, LlamaIndex's, Hugging Face's, curl."""

import asyncio
import base64
import json
import shutil
import subprocess

import numpy as np
import pytest
from huggingface_hub import InferenceClient

from jaxpool import PoolingParams
from jaxpool.server.app import Settings
from jaxpool.server.limits import Limits
from jaxpool.server.serving import Serving
from tests.servers import load, running, tiny_servings, write_models

TEXTS = ["the quick brown fox", "a lazy dog", "seven small birds sing"]
KEY = "a-key"


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """The oracle: what the `LLM` says of TEXTS, and of TEXTS in 8 dimensions."""
    written = write_models(tmp_path_factory.mktemp("oracles"))
    with load("embed", written["embed"]) as embed, load("chat", written["chat"]) as chat:
        short = chat.embed_array(TEXTS, pooling_params=PoolingParams(dimensions=8))
        yield embed.embed_array(TEXTS), short


@pytest.fixture(scope="module")
def servings(tmp_path_factory):
    return tiny_servings(
        tmp_path_factory.mktemp("served"), "embed", "chat", "classes", limits=Limits(queued_tokens=500)
    )


@pytest.fixture(scope="module")
def url(servings):
    with running(servings, Settings(keys=(KEY,), warm=False)) as url:
        yield url


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=1e-6)


# OpenAI's.


@pytest.fixture
def client(url):
    openai = pytest.importorskip("openai", reason="the extra `clients` is not installed")
    with openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}], ids=str)
def test_openai(client, vectors, encoding):
    answer = client.embeddings.create(model="embed", input=TEXTS, **encoding)
    found = [item.embedding for item in answer.data]
    if encoding.get("encoding_format") == "base64":  # asked for, it is given as it came
        found = [np.frombuffer(base64.b64decode(text), np.float32) for text in found]
    close(found, vectors[0])
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    assert (answer.model, answer.object, answer.data[1].index) == ("embed", "list", 1)


def test_openai_takes_ids_and_dimensions(client, servings, vectors):
    ids = [encoded.ids.tolist() for encoded in servings[0].llm.engine.tokenizer.encode(TEXTS, 64)]
    close([item.embedding for item in client.embeddings.create(model="embed", input=ids).data], vectors[0])
    close(client.embeddings.create(model="embed", input=ids[0]).data[0].embedding, vectors[0][0])
    short = client.embeddings.create(model="chat", input=TEXTS, dimensions=8)
    close([item.embedding for item in short.data], vectors[1])


def test_openai_lists_models(client):
    assert [model.id for model in client.models.list()][::2] == ["embed", "chat", "classes"]


def test_openai_looks_a_model_up(client):
    import openai

    model = client.models.retrieve("also-chat")
    assert (model.id, model.object, model.owned_by, model.to_dict()["root"]) == (
        "also-chat",
        "model",
        "jaxpool",
        "chat",
    )
    assert model == next(listed for listed in client.models.list() if listed.id == "also-chat")
    with pytest.raises(openai.NotFoundError, match="The model `no/body` does not exist") as raised:
        client.models.retrieve("no/body")
    assert raised.value.type == "NotFoundError"


def test_openai_names_its_request(client):
    answer = client.embeddings.create(model="embed", input="a", extra_headers={"X-Request-Id": "mine"})
    assert answer.to_dict()["id"] == "embd-mine"


def test_openai_sends_null(client, vectors):
    """As LiteLLM does of what it was not told."""
    nothing = {"encoding_format": None, "dimensions": None, "user": None, "priority": None}
    answer = client.embeddings.create(model="embed", input=TEXTS[0], extra_body=nothing)
    close(answer.data[0].embedding, vectors[0][0])


def test_openai_in_asyncio(url, vectors):
    openai = pytest.importorskip("openai", reason="the extra `clients` is not installed")

    async def embed():
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as client:
            asked = [client.embeddings.create(model="embed", input=TEXTS[i % 3]) for i in range(30)]
            return [answer.data[0].embedding for answer in await asyncio.gather(*asked)]

    close(asyncio.run(embed()), np.tile(vectors[0], (10, 1)))


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"input": "a dog " * 100}, "BadRequestError", "maximum context length is 64 tokens"),
        ({"input": []}, "BadRequestError", "at least one prompt"),
        ({"input": "a", "dimensions": 8}, "BadRequestError", "matryoshka"),
        ({"input": "a", "model": "classes"}, "BadRequestError", "does not support Embeddings API"),
        ({"input": "a", "model": "nobody"}, "NotFoundError", "The model `nobody` does not exist."),
    ],
)
def test_openai_raises(client, asked, error, words):
    import openai

    with pytest.raises(getattr(openai, error)) as raised:
        client.embeddings.create(**{"model": "embed"} | asked)
    assert words in raised.value.message
    assert raised.value.type == error
    assert raised.value.body["message"] == raised.value.response.json()["message"]


def test_openai_without_its_key(client):
    import openai

    with pytest.raises(openai.AuthenticationError, match="Unauthorized"):
        client.with_options(api_key="another").embeddings.create(model="embed", input="a")


def test_openai_while_the_queue_is_full(client, servings, monkeypatch):
    import openai

    monkeypatch.setattr(servings[0]._scheduler, "queued_tokens", 499)
    with pytest.raises(openai.RateLimitError, match="the queue is full") as raised:
        client.embeddings.create(model="embed", input="the quick fox")
    assert 1 <= int(raised.value.response.headers["retry-after"]) <= 60


# LangChain's and LlamaIndex's.


def test_langchain(url, vectors):
    langchain = pytest.importorskip("langchain_openai", reason="the extra `clients` is not installed")
    # Unasked it sends the ids of OpenAI's own tokenizer, which mean nothing to other models.
    how = {"model": "embed", "base_url": url + "/v1", "api_key": KEY, "check_embedding_ctx_length": False}
    embeddings = langchain.OpenAIEmbeddings(**how)
    close(embeddings.embed_documents(TEXTS), vectors[0])
    close(embeddings.embed_query(TEXTS[1]), vectors[0][1])
    close(asyncio.run(embeddings.aembed_documents(TEXTS)), vectors[0])
    short = langchain.OpenAIEmbeddings(**how | {"model": "chat"}, dimensions=8)
    close(short.embed_documents(TEXTS), vectors[1])


def test_langchain_with_its_own_tokenizer(url, monkeypatch):
    """It sends the ids of OpenAI's tokenizer: some beyond the vocabulary are told, not embedded."""
    langchain = pytest.importorskip("langchain_openai", reason="the extra `clients` is not installed")
    openai = pytest.importorskip("openai", reason="the extra `clients` is not installed")
    embeddings = langchain.OpenAIEmbeddings(model="embed", base_url=url + "/v1", api_key=KEY)
    assert embeddings.check_embedding_ctx_length
    # tiktoken would download OpenAI's vocabulary; "the quick brown fox" in it:
    ids = [1820, 4062, 14198, 39935]
    monkeypatch.setattr(type(embeddings), "_tokenize", lambda *_: ([TEXTS[0]], [ids], [0], [len(ids)]))
    with pytest.raises(openai.BadRequestError, match="out of vocabulary"):
        embeddings.embed_documents(TEXTS[:1])


def test_llamaindex(url, vectors):
    reason = "the extra `clients` is not installed"
    llamaindex = pytest.importorskip("llama_index.embeddings.openai_like", reason=reason)
    how = {"model_name": "embed", "api_base": url + "/v1", "api_key": KEY, "embed_batch_size": 2, "max_retries": 0}
    embeddings = llamaindex.OpenAILikeEmbedding(**how)
    close(embeddings.get_text_embedding_batch(TEXTS), vectors[0])
    close(embeddings.get_query_embedding(TEXTS[1]), vectors[0][1])
    close(asyncio.run(embeddings.aget_text_embedding_batch(TEXTS)), vectors[0])


# Hugging Face's, which speaks to text-embeddings-inference by its paths.


@pytest.fixture
def reachable(monkeypatch):
    """The server is no hub: the client asks it also where the hub is not to be asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def hugging_face(url, reachable):
    return lambda path: InferenceClient(model=url + path, token=KEY)


def test_hugging_face_extracts_features(hugging_face, vectors):
    close(hugging_face("/embed").feature_extraction(TEXTS), vectors[0])
    close(hugging_face("/embed").feature_extraction(TEXTS[1], normalize=True, truncate=True), vectors[0][1:2])


def test_hugging_face_by_the_address_alone(url, hugging_face, vectors):
    for path in ("", "/"):
        close(hugging_face(path).feature_extraction(TEXTS), vectors[0])
    close(hugging_face("").feature_extraction(TEXTS[0], normalize=True, truncate=False), vectors[0][:1])


def test_hugging_face_finds_what_is_similar(hugging_face, vectors):
    found = hugging_face("/similarity").sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
    close(found, vectors[0][1:] @ vectors[0][0])


def test_hugging_face_classifies(tmp_path, reachable):
    written = write_models(tmp_path)
    with load("classes", written["classes"]) as llm:
        (expected,) = llm.classify(TEXTS[0], use_tqdm=False)
    with running([Serving(load("classes", written["classes"]), ("classes",), Limits())]) as url:
        found = InferenceClient(model=url + "/predict").text_classification(TEXTS[0])
        assert InferenceClient(url).text_classification(TEXTS[0]) == found
    best = int(np.argmax(expected.outputs.probs))
    assert found.label == f"LABEL_{best}"
    assert found.score == pytest.approx(expected.outputs.probs[best])


# curl.


def curl(url, *arguments):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--show-error", "--max-time", "20", "-H", f"Authorization: Bearer {KEY}"]
    return subprocess.run([*command, *arguments, url], capture_output=True, check=True).stdout


@pytest.mark.parametrize("http", ["--http1.0", "--http1.1"])
def test_curl(url, vectors, http):
    body = json.dumps({"model": "embed", "input": TEXTS})
    said = curl(url + "/v1/embeddings", http, "-H", "Content-Type: application/json", "-d", body)
    close([item["embedding"] for item in json.loads(said)["data"]], vectors[0])
    chunked = ("-H", "Content-Type: application/json", "-H", "Transfer-Encoding: chunked", "-d", body)
    if http == "--http1.1":
        assert json.loads(curl(url + "/v1/embeddings", *chunked))["data"] == json.loads(said)["data"]


def test_curl_asks_how_it_is(url):
    assert curl(url + "/health", "-o", "-", "-w", "%{http_code}") == b"200"
    assert b"jaxpool_requests_total" in curl(url + "/metrics")
