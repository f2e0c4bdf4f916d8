"""vLLM's protocol: what the endpoints take, what they answer (the `LLM`'s own answers), and how they say no."""

import base64
import json

import ml_dtypes
import numpy as np
import pytest
from starlette.testclient import TestClient

from jaxpool import PoolingParams
from jaxpool.server.app import Pages, Settings, make_app
from jaxpool.server.chat import Chat
from jaxpool.server.limits import Limits
from tests.servers import ARGUMENTS, load, tiny_servings, write_models
from tests.tiny import SENTENCES

FOX, HELLO = "the quick brown fox jumps over a lazy dog", SENTENCES[1]
DOCUMENTS = ["hello, my name is nobody", "a stitch in time", "the quick brown fox", "search"]
LONG = "the quick brown fox jumps over a lazy dog " * 20
MESSAGES = [{"role": "user", "content": "the quick fox"}, {"role": "assistant", "content": "a lazy dog"}]
RENDERED = "<|im_start|>user\nthe quick fox<|im_end|>\n<|im_start|>assistant\na lazy dog<|im_end|>\n"
OPEN = ("/health", "/ready", "/ping")
GUARDED = ("/v1/models", "/version", "/load", "/metrics", "/openapi.json", "/docs", "/nothing", "/v1/embeddings")


@pytest.fixture(scope="module")
def llms(tmp_path_factory):
    """The oracles: the same models, with engines of their own."""
    written = write_models(tmp_path_factory.mktemp("oracles"))
    models = {name: load(name, written[name]) for name in ARGUMENTS}
    yield models
    for model in models.values():
        model.close()


@pytest.fixture(scope="module")
def servings(tmp_path_factory):
    return tiny_servings(tmp_path_factory.mktemp("served"), limits=Limits(body_bytes=10**6, texts=64))


@pytest.fixture(scope="module")
def client(servings):
    settings = Settings(warm=False, limits=Limits(body_bytes=10**6, texts=64))
    with TestClient(make_app(servings, settings)) as client:
        yield client


@pytest.fixture
def ask(client):
    """POSTs a body; the answer's JSON, which has to be an answer."""

    def ask(path, **body):
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    return ask


@pytest.fixture
def refused(client):
    """POSTs a body, which has to be refused with a status and words."""

    def refused(path, words, status=400, **body):
        response = client.post(path, json=body)
        assert response.status_code == status, response.text
        assert words in response.json()["error"]["message"], response.text

    return refused


def ids_of(llm, *texts):
    return [encoded.ids.tolist() for encoded in llm.engine.tokenizer.encode(texts, 10**6)]


# Vectors.

PROMPTS = {
    "a text": lambda ids: FOX,
    "a list of one": lambda ids: [FOX],
    "texts": lambda ids: [FOX, HELLO, FOX],
    "ids": lambda ids: ids(FOX)[0],
    "lists of ids": lambda ids: ids(FOX, "a dog"),
}


@pytest.mark.parametrize("model", ["embed", "chat"])
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_embeddings(llms, ask, prompts, model):
    texts = prompts(lambda *texts: ids_of(llms[model], *texts))
    expected = llms[model].embed(texts, use_tqdm=False)
    answer = ask("/v1/embeddings", model=model, input=texts, truncate_prompt_tokens=-1)
    tokens = sum(len(output.prompt_token_ids) for output in expected)
    assert answer["id"].startswith("embd-")
    assert answer["created"] > 1.7e9
    assert (answer["object"], answer["model"]) == ("list", model)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    assert answer["usage"] == usage
    assert [(item["index"], item["object"]) for item in answer["data"]] == [
        (i, "embedding") for i in range(len(expected))
    ]
    for item, output in zip(answer["data"], expected, strict=True):
        np.testing.assert_allclose(item["embedding"], output.outputs.embedding, atol=1e-6)


BITS = {"float32": np.uint32, "float16": np.uint16, "bfloat16": np.uint16, "fp8_e4m3": np.uint8, "fp8_e5m2": np.uint8}
DTYPES = {
    "float32": (np.float32, 0),
    "float16": (np.float16, 1e-3),
    "bfloat16": (ml_dtypes.bfloat16, 4e-3),
    "fp8_e4m3": (ml_dtypes.float8_e4m3fn, 0.0625),
    "fp8_e5m2": (ml_dtypes.float8_e5m2, 0.125),
}


def decoded(data, dtype, endianness):
    bits = np.dtype(BITS[dtype]).newbyteorder({"big": ">", "little": "<", "native": "="}[endianness])
    return np.frombuffer(data, bits).astype(BITS[dtype]).view(DTYPES[dtype][0]).astype(np.float32)


@pytest.mark.parametrize("encoding", ["base64", "bytes", "bytes_only"])
@pytest.mark.parametrize("endianness", ["native", "big", "little"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_encodings(client, ask, dtype, endianness, encoding):
    body = {"model": "embed", "input": [FOX, "a dog"]}
    floats = np.array([item["embedding"] for item in ask("/v1/embeddings", **body)["data"]], np.float32)
    how = {"encoding_format": encoding, "embed_dtype": dtype, "endianness": endianness}
    response = client.post("/v1/embeddings", json=body | how)
    if encoding == "base64":
        vectors = [base64.b64decode(item["embedding"]) for item in response.json()["data"]]
    else:
        assert response.headers["content-type"] == "application/octet-stream"
        half = len(response.content) // 2
        vectors = [response.content[:half], response.content[half:]]
    for vector, expected in zip(vectors, floats, strict=True):
        np.testing.assert_allclose(decoded(vector, dtype, endianness), expected, rtol=DTYPES[dtype][1], atol=2e-3)
    assert ("metadata" in response.headers) == (encoding == "bytes")


def test_the_metadata_of_bytes(client, llms):
    body = {"model": "embed", "input": [FOX, "a dog"], "encoding_format": "bytes", "task": "token_embed"}
    response = client.post("/pooling", json=body | {"request_id": "mine", "embed_dtype": "float16"})
    told = json.loads(response.headers["metadata"])
    counts = [len(ids) for ids in ids_of(llms["embed"], FOX, "a dog")]
    assert (told["id"], told["model"], told["usage"]["prompt_tokens"]) == ("pool-mine", "embed", sum(counts))
    assert [item["shape"] for item in told["data"]] == [[count, 32] for count in counts]
    assert [(item["start"], item["end"]) for item in told["data"]] == [
        (0, counts[0] * 64),
        (counts[0] * 64, sum(counts) * 64),
    ]
    assert {(item["embed_dtype"], item["endianness"]) for item in told["data"]} == {("float16", "native")}


@pytest.mark.parametrize(
    "body",
    [{"encoding_format": "hex"}, {"embed_dtype": "float64"}, {"endianness": "middle"}, {"truncation_side": "top"}],
    ids=lambda body: next(iter(body)),
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling"])
def test_a_wrong_literal(refused, path, body):
    refused(path, "literal_error", input=FOX, **body)


@pytest.mark.parametrize("dimensions", [4, 8, 16, None])
def test_matryoshka(llms, ask, dimensions):
    expected = llms["chat"].embed_array([FOX, "a dog"], pooling_params=PoolingParams(dimensions=dimensions))
    data = ask("/v1/embeddings", model="chat", input=[FOX, "a dog"], dimensions=dimensions)["data"]
    np.testing.assert_allclose([item["embedding"] for item in data], expected, atol=1e-6)
    assert expected.shape == (2, dimensions or 16)


@pytest.mark.parametrize(
    ("model", "dimensions", "words"),
    [
        ("embed", 8, 'Model "embed" does not support matryoshka representation'),
        ("chat", 5, 'Model "chat" only supports [4, 8, 16] matryoshka dimensions'),
        ("chat", 0, "Dimensions must be greater than 0"),
        ("chat", -1, "Dimensions must be greater than 0"),
        ("chat", 32, "matryoshka dimensions"),
        ("chat", "many", "int_parsing"),
    ],
)
def test_dimensions_that_there_are_not(refused, model, dimensions, words):
    refused("/v1/embeddings", words, model=model, input=FOX, dimensions=dimensions)


@pytest.mark.parametrize("flag", ["normalize", "use_activation"])
def test_raw_vectors(llms, ask, flag):
    params = PoolingParams(use_activation=False)
    expected = llms["embed"].embed_array([FOX], pooling_params=params)
    (item,) = ask("/v1/embeddings", model="embed", input=FOX, **{flag: False})["data"]
    np.testing.assert_allclose([item["embedding"]], expected, rtol=1e-5)


# Fields that are null.

NULLS = {
    "/v1/embeddings": {"model": "embed", "input": FOX},
    "/pooling": {"model": "embed", "input": FOX},
    "/classify": {"model": "classes", "input": FOX},
    "/score": {"model": "pairs", "text_1": "a dog", "text_2": FOX},
    "/rerank": {"model": "pairs", "query": "a dog", "documents": DOCUMENTS},
    "/v1/rerank": {"model": "pairs", "query": "a dog", "documents": DOCUMENTS},
    "/v2/embed": {"model": "embed", "texts": [FOX]},
    "/embed": {"model": "embed", "inputs": FOX},
    "/predict": {"model": "classes", "inputs": FOX},
    "/similarity": {"model": "embed", "inputs": {"source_sentence": FOX, "sentences": [HELLO]}},
    "/invocations": {"model": "embed", "input": FOX},
    "/tokenize": {"model": "embed", "prompt": FOX},
    "/decode": {"model": "embed", "ids": [5, 6]},
}


def without_ids(answer):
    return {k: v for k, v in answer.items() if k not in ("id", "created")} if isinstance(answer, dict) else answer


def bodies_of(document, path):
    """The schemas of a path's bodies."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    kinds = document["components"]["schemas"]
    return schema.get("anyOf") or [kinds[schema["$ref"].rpartition("/")[2]]]


@pytest.mark.parametrize("path", NULLS)
def test_null_is_the_default(client, ask, path):
    body = NULLS[path]
    known = {name for kind in bodies_of(client.get("/openapi.json").json(), path) for name in kind["properties"]}
    assert len(known - body.keys()) >= 1
    nothing = dict.fromkeys(known - body.keys())
    assert without_ids(ask(path, **nothing, **body)) == without_ids(ask(path, **body))


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/rerank", {"query": None, "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": None}, "documents"),
        ("/detokenize", {"tokens": None}, "tokens"),
        ("/embed", {"inputs": None}, "inputs"),
    ],
)
def test_what_is_needed_is_not_null(refused, path, body, field):
    refused(path, f"{field}: Field required", model="pairs", **body)


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/embeddings", "late_chunking_params", {"chunk_size": 4}),
        ("/v1/embeddings", "late_chunking", True),
        ("/pooling", "media_io_kwargs", {"image": {"x": 1}}),
        ("/score", "chat_template", "{{ messages }}"),
        ("/rerank", "rank_fields", ["title"]),
        ("/rerank", "max_chunks_per_doc", 10),
    ],
)
def test_fields_that_would_change_the_answer(client, ask, refused, path, field, value):
    refused(path, f"{field}: not supported here", **NULLS[path], **{field: value})
    plain = without_ids(ask(path, **NULLS[path]))
    for nothing in (None, type(value)()):
        assert without_ids(ask(path, **NULLS[path], **{field: nothing})) == plain
    assert without_ids(ask(path, **NULLS[path], cache_salt="x", nobodys=[1])) == plain


# Conversations.


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ({"messages": MESSAGES}, RENDERED),
        ({"messages": MESSAGES, "continue_final_message": True}, RENDERED.removesuffix("<|im_end|>\n")),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
         "<|im_start|>user\na\nb<|im_end|>\n"),
    ],
    ids=["messages", "continued", "parts"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling"])
def test_a_conversation_is_the_text_that_its_template_makes(ask, path, messages, text):
    short = {"model": "chat", "truncate_prompt_tokens": -1}
    chat = ask(path, **messages, **short)
    completion = ask(path, input=text, add_special_tokens=False, **short)
    assert chat["data"] == completion["data"]
    assert chat["usage"] == completion["usage"]


@pytest.mark.parametrize("field", ["messages", "input"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling"])
def test_several_conversations(ask, path, field):
    other = [{"role": "user", "content": "hello"}]
    how = {"model": "chat", "truncate_prompt_tokens": -1}
    alone = [ask(path, messages=messages, **how) for messages in (MESSAGES, other)]
    both = ask(path, **{field: [MESSAGES, other]}, **how)
    assert [item["index"] for item in both["data"]] == [0, 1]
    for item, one in zip(both["data"], alone, strict=True):
        assert item["object"] == one["data"][0]["object"]
        field_of = "data" if path == "/pooling" else "embedding"
        np.testing.assert_allclose(item[field_of], one["data"][0][field_of], atol=1e-6)
    assert both["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)
    assert ask(path, **{field: MESSAGES}, **how)["data"] == alone[0]["data"]
    assert len(ask(path, **{field: [MESSAGES]}, **how)["data"]) == 1


@pytest.mark.parametrize(
    ("body", "words", "status"),
    [
        ({"messages": [MESSAGES, []]}, "`messages` is empty", 400),
        ({"messages": [MESSAGES, [{"role": "user"}]]}, "messages[1][0].content: `content`", 400),
        ({"messages": [MESSAGES] * 65}, "at most 64", 413),
        ({"messages": [MESSAGES, {"role": "user"}]}, "messages", 400),
    ],
)
def test_several_conversations_that_are_refused(refused, body, words, status):
    refused("/v1/embeddings", words, status, model="chat", **body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"model": "embed", "messages": MESSAGES}, "no chat template"),
        ({"model": "chat", "messages": MESSAGES, "input": "too"}, "either `input` or `messages`"),
        ({"model": "chat"}, "either `input` or `messages`"),
        ({"model": "chat", "messages": []}, "`messages` is empty"),
        ({"model": "chat", "messages": [{"role": "user"}]}, "`content`"),
        ({"model": "chat", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "'image_url' are not supported"),
        ({"model": "chat", "messages": MESSAGES, "chat_template": "{{ messages }}"}, "--trust-request-chat-template"),
        ({"model": "chat", "messages": MESSAGES, "add_generation_prompt": True, "continue_final_message": True},
         "Cannot set both"),
    ],
)  # fmt: skip
def test_a_conversation_that_is_refused(refused, body, words):
    refused("/v1/embeddings", words, **body)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for %}", "chat_template"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", "chat_template"),
        ("{{ messages.append(1) }}", "chat_template"),
    ],
)
def test_a_broken_template_is_the_request_s_fault(servings, template, words):
    app = make_app(servings, Settings(warm=False, chat=Chat(trust_requests=True)))
    body = {"model": "embed", "messages": MESSAGES, "chat_template": template}
    response = TestClient(app, raise_server_exceptions=False).post("/v1/embeddings", json=body)
    assert response.status_code == 400
    assert words in response.json()["message"]


# Lengths.

BODIES = {
    "/v1/embeddings": lambda text: {"model": "embed", "input": text},
    "/pooling": lambda text: {"model": "embed", "input": [text]},
    "/classify": lambda text: {"model": "classes", "input": text},
    "/score": lambda text: {"model": "pairs", "text_1": "a dog", "text_2": text},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("limit", "tokens"), [(-1, 64), (64, 64), (5, 5)])
def test_cut(client, path, limit, tokens):
    response = client.post(path, json=BODIES[path](LONG) | {"truncate_prompt_tokens": limit})
    usage = response.json()["usage"]
    assert (usage["prompt_tokens"], usage["truncated"]) == (tokens, 1)
    assert response.headers["x-truncated-texts"] == "1"


@pytest.mark.parametrize("path", BODIES)
def test_nothing_is_cut_that_is_short(client, path):
    response = client.post(path, json=BODIES[path]("a fox") | {"truncate_prompt_tokens": -1})
    assert "truncated" not in response.json()["usage"]
    assert "x-truncated-texts" not in response.headers


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (None, "This model's maximum context length is 64 tokens. However, your prompt contains at least"),
        (65, "truncate_prompt_tokens value (65) is greater than max_model_len (64). Please request a smaller "),
        (0, "truncate_prompt_tokens is 0"),
        (-2, "greater_than_equal"),
        ("some", "int_parsing"),
    ],
)
def test_too_long(refused, path, limit, words):
    refused(path, words, **BODIES[path](LONG), truncate_prompt_tokens=limit)


def test_rerank_cuts_unasked(client):
    body = {"model": "pairs", "query": "a dog", "documents": [LONG, "a fox"]}
    assert client.post("/rerank", json=body).headers["x-truncated-texts"] == "1"


@pytest.mark.parametrize(
    ("side", "kept"), [("left", slice(-6, None)), ("right", slice(None, 6)), (None, slice(None, 6))]
)
def test_truncation_side(llms, ask, side, kept):
    whole = ids_of(llms["chat"], FOX)[0]
    one = ask("/v1/embeddings", model="chat", input=FOX, truncate_prompt_tokens=6, truncation_side=side)
    other = ask("/v1/embeddings", model="chat", input=whole[kept])
    assert one["data"] == other["data"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/embeddings", {"model": "chat", "input": ""}, "no tokens"),
        ("/v1/embeddings", {"input": []}, "at least one prompt"),
        ("/v1/embeddings", {"input": [[]]}, "empty"),
        ("/v1/embeddings", {"input": None}, "either `input` or `messages`"),
        ("/v1/embeddings", {"input": {"text": "x"}}, "input"),
        ("/v1/embeddings", {"input": ["a", 1]}, "input"),
        ("/v1/embeddings", {"input": ["1", 2]}, "input"),
        ("/v1/embeddings", {"input": [1, "2"]}, "input"),
        ("/v1/embeddings", {"input": [True, False]}, "input"),
        ("/v1/embeddings", {"input": [1.0]}, "input"),
        ("/v1/embeddings", {"input": [["1"]]}, "input"),
        ("/v1/embeddings", {"input": [["a"], [1]]}, "input"),
        ("/pooling", {"input": ["1", 2]}, "input"),
        ("/detokenize", {"tokens": ["1"]}, "tokens"),
        ("/decode", {"ids": [True]}, "ids"),
        ("/embed", {"inputs": ["1", 2]}, "inputs"),
        ("/v1/embeddings", {"input": [-1]}, "out of vocabulary"),
        ("/v1/embeddings", {"input": [[1, 10**6]]}, "out of vocabulary"),
        ("/v1/embeddings", {"input": ["a"] * 65}, "at most 64"),
        ("/pooling", {"input": []}, "at least one prompt"),
        ("/score", {"text_1": "a", "text_2": ["b"] * 65}, "at most 64"),
        ("/rerank", {"query": "a", "documents": ["b"] * 65}, "at most 64"),
        ("/rerank", {"query": "a", "documents": []}, "At least one text"),
    ],
)  # fmt: skip
def test_inputs_that_are_none(refused, path, body, words):
    refused(path, words, 413 if "at most" in words else 400, **body)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/embeddings", "messages"),
        ("/v1/embeddings", "input"),
        ("/pooling", "input"),
        ("/classify", "input"),
        ("/score", "text_1"),
        ("/rerank", "documents"),
        ("/detokenize", "tokens"),
        ("/tokenize", "messages"),
        ("/v2/embed", "texts"),
        ("/embed", "inputs"),
        ("/predict", "inputs"),
    ],
)
def test_a_long_list_is_refused_at_its_first_wrong_item(client, path, field):
    response = client.post(path, json={"query": "a", field: [0.5] * 50_000})
    assert response.status_code == 400
    errors, _, words = response.json()["message"].partition(" ")
    assert words.startswith("validation error(s): ")
    assert int(errors) < 10


def test_an_empty_text_is_the_special_tokens(ask):
    assert ask("/v1/embeddings", model="embed", input="")["usage"]["prompt_tokens"] == 2


def test_without_special_tokens(llms, ask):
    (ids,) = ids_of(llms["embed"], FOX)
    bare = ask("/v1/embeddings", model="embed", input=FOX, add_special_tokens=False)
    assert bare["usage"]["prompt_tokens"] == len(ids) - 2
    assert bare["data"] == ask("/v1/embeddings", model="embed", input=ids[1:-1])["data"]


# Classes, scores, rankings.


def test_classify(llms, ask):
    expected = llms["classes"].classify([FOX, HELLO], use_tqdm=False)
    answer = ask("/classify", model="classes", input=[FOX, HELLO])
    assert answer["id"].startswith("classify-")
    for i, (item, output) in enumerate(zip(answer["data"], expected, strict=True)):
        assert (item["index"], item["num_classes"]) == (i, 3)
        assert item["label"] == f"LABEL_{np.argmax(output.outputs.probs)}"
        np.testing.assert_allclose(item["probs"], output.outputs.probs, atol=1e-6)
    assert ask("/classify", model="classes", input=[])["data"] == []


@pytest.mark.parametrize("flag", ["softmax", "activation", "use_activation"])
def test_classify_gives_logits(llms, ask, flag):
    (expected,) = llms["classes"].classify(FOX, pooling_params=PoolingParams(use_activation=False), use_tqdm=False)
    (item,) = ask("/classify", model="classes", input=FOX, **{flag: False})["data"]
    np.testing.assert_allclose(item["probs"], expected.outputs.probs, rtol=1e-5)


SPELLINGS = [("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items")]
SIDES = {
    "1:1": ("a dog", FOX),
    "[1]:1": (["a dog"], FOX),
    "1:N": ("a dog", DOCUMENTS),
    "N:N": ([FOX, HELLO, "a", "b"], DOCUMENTS),
}


@pytest.mark.parametrize("model", ["pairs", "embed"])
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("spelling", SPELLINGS, ids="/".join)
def test_score(llms, ask, spelling, sides, model):
    expected = llms[model].score(*sides, use_tqdm=False)
    answer = ask("/score", model=model, **dict(zip(spelling, sides, strict=True)))
    assert answer["id"].startswith("score-")
    assert [(item["index"], item["object"]) for item in answer["data"]] == [(i, "score") for i in range(len(expected))]
    scores = [output.outputs.score for output in expected]
    np.testing.assert_allclose([item["score"] for item in answer["data"]], scores, atol=1e-6)
    if model == "pairs":
        assert answer["usage"]["prompt_tokens"] == sum(len(output.prompt_token_ids) for output in expected)


def test_score_takes_parts(ask):
    parts = {"content": [{"type": "text", "text": "a lazy "}, {"type": "text", "text": "dog"}]}
    body = {"model": "pairs", "queries": "a fox"}
    assert ask("/score", documents=parts, **body)["data"] == ask("/score", documents="a lazy dog", **body)["data"]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "Input lengths must be either 1:1, 1:N or N:N"),
        ({"text_1": ["a", "b"], "text_2": "a"}, "Input lengths must be either 1:1, 1:N or N:N"),
        ({"text_1": [], "text_2": "a"}, "At least one text element must be given"),
        ({"text_1": "a", "text_2": []}, "At least one text_pair element must be given"),
        ({"text_1": "a"}, "both sides in one spelling"),
        ({"text_1": "a", "data_2": "b"}, "both sides in one spelling"),
        ({"text_1": "a", "text_2": "b", "queries": "c"}, "both sides in one spelling"),
        ({"text_1": 1, "text_2": "b"}, "text_1"),
        ({"queries": {"content": [{"type": "image_url"}]}, "documents": "b"}, "MultiModalParam is not supported"),
    ],
)
def test_scores_that_are_refused(refused, path, body, words):
    refused(path, words, model="pairs", **body)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("model", ["pairs", "embed"])
@pytest.mark.parametrize("top_n", [None, 0, 1, 2, 10])
def test_rerank(llms, ask, path, model, top_n):
    expected = llms[model].rerank("a dog", DOCUMENTS, top_n or None)
    body = {} if top_n is None else {"top_n": top_n}
    answer = ask(path, model=model, query="a dog", documents=DOCUMENTS, **body)
    assert [result["index"] for result in answer["results"]] == [ranked.index for ranked in expected]
    scores = [result["relevance_score"] for result in answer["results"]]
    np.testing.assert_allclose(scores, [ranked.score for ranked in expected], atol=1e-6)
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == min(top_n or 4, 4)
    for result in answer["results"]:
        assert result.get("document", {"text": DOCUMENTS[result["index"]]}) == {"text": DOCUMENTS[result["index"]]}


@pytest.mark.parametrize("tokens", [1, 3, 100, 0, None])
def test_rerank_cuts_documents(llms, ask, tokens):
    cut = llms["pairs"].engine.tokenizer.cut_text
    short = [cut(document, tokens or 100) for document in DOCUMENTS]
    body = {"model": "pairs", "query": "a dog", "documents": DOCUMENTS, "max_tokens_per_doc": tokens}
    scores = [result["relevance_score"] for result in ask("/rerank", **body)["results"]]
    np.testing.assert_allclose(scores, [ranked.score for ranked in llms["pairs"].rerank("a dog", short)], atol=1e-6)


@pytest.mark.parametrize("model", ["pairs", "embed"])
@pytest.mark.parametrize(
    "limits",
    [{"max_tokens_per_query": 2}, {"max_tokens_per_doc": 3}, {"max_tokens_per_query": 1, "max_tokens_per_doc": 2}],
)
def test_texts_are_cut_before_they_are_a_pair(llms, ask, model, limits):
    cut = llms[model].engine.tokenizer.cut_text
    query = cut(FOX, limits.get("max_tokens_per_query", 100))
    documents = [cut(document, limits.get("max_tokens_per_doc", 100)) for document in DOCUMENTS]
    assert (query, documents) != (FOX, DOCUMENTS)
    expected = [output.outputs.score for output in llms[model].score(query, documents, use_tqdm=False)]
    scored = ask("/score", model=model, queries=FOX, documents=DOCUMENTS, **limits)["data"]
    np.testing.assert_allclose([item["score"] for item in scored], expected, atol=1e-6)
    ranked = ask("/rerank", model=model, query=FOX, documents=DOCUMENTS, **limits)["results"]
    np.testing.assert_allclose([item["relevance_score"] for item in ranked], sorted(expected, reverse=True), atol=1e-6)
    assert {item["document"]["text"] for item in ranked} == set(DOCUMENTS)  # as they were given


@pytest.mark.parametrize("field", ["max_tokens_per_query", "max_tokens_per_doc"])
@pytest.mark.parametrize("path", ["/score", "/rerank"])
def test_limits_that_are_none(ask, refused, path, field):
    refused(path, "greater_than_equal", **NULLS[path], **{field: -1})
    plain = without_ids(ask(path, **NULLS[path]))
    assert without_ids(ask(path, **NULLS[path], **{field: 0})) == plain


PAIR_TEMPLATE = "{{ instruction or 'judge' }}: {{ messages[-2].content }} with {{ messages[-1].content }}"


@pytest.fixture(scope="module")
def templated(servings):
    settings = Settings(warm=False, chat=Chat(PAIR_TEMPLATE))
    return TestClient(make_app(servings, settings))


SAID = [
    {"instruction": "hello"},
    {"chat_template_kwargs": {"instruction": "hello"}},
    {"instruction": "hello", "chat_template_kwargs": {"instruction": "hello"}},
]


@pytest.mark.parametrize("said", [{}, *SAID])
def test_scores_by_the_servers_template_and_an_instruction(llms, ask, templated, said):
    written = [f"{'hello' if said else 'judge'}: a dog with {document}" for document in DOCUMENTS]
    expected = [output.outputs.probs[0] for output in llms["pairs"].classify(written, use_tqdm=False)]
    scored = templated.post("/score", json={"model": "pairs", "text_1": "a dog", "text_2": DOCUMENTS, **said}).json()
    np.testing.assert_allclose([item["score"] for item in scored["data"]], expected, atol=1e-6)
    for path, texts in (("/rerank", "documents"), ("/v2/rerank", "documents")):
        body = {"model": "pairs", "query": "a dog", texts: DOCUMENTS, **said}
        ranked = templated.post(path, json=body).json()["results"]
        scores = [item["relevance_score"] for item in ranked]
        np.testing.assert_allclose(scores, sorted(expected, reverse=True), atol=1e-6)
    if not said:
        pair = {"model": "pairs", "inputs": ["a dog", DOCUMENTS[0]]}
        assert templated.post("/predict", json=pair).json()[0]["score"] == pytest.approx(expected[0], abs=1e-6)
        body = {"text_1": "a dog", "text_2": DOCUMENTS, "model": "embed"}  # reads one text at a time
        assert templated.post("/score", json=body).json()["data"] == ask("/score", **body)["data"]


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("path", ["/score", "/rerank"])
def test_an_instruction_that_has_no_place(refused, path, said):
    refused(path, "instruction", **NULLS[path], **said)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"instruction": "a", "chat_template_kwargs": {"instruction": "b"}}, "said twice"),
        ({"chat_template_kwargs": {"instruction": ["a"]}}, "has to be a text"),
        ({"instruction": 5}, "instruction"),
    ],
)
def test_instructions_that_are_refused(templated, said, words):
    response = templated.post("/score", json=NULLS["/score"] | said)
    assert response.status_code == 400
    assert words in response.json()["message"]


def test_a_template_that_drops_a_text(servings):
    app = make_app(servings, Settings(warm=False, chat=Chat("{{ messages[0].content }}")))
    response = TestClient(app).post("/score", json=NULLS["/score"])
    assert response.status_code == 400
    assert "do not reach the prompt" in response.json()["message"]


def test_rerank_without_documents(ask):
    body = {"model": "pairs", "query": "a dog", "documents": DOCUMENTS}
    answer = ask("/rerank", return_documents=False, **body)
    assert all(set(result) == {"index", "relevance_score"} for result in answer["results"])


def test_rerank_takes_documents_in_three_forms(ask):
    forms = ["a fox", {"text": "a fox"}, {"content": [{"type": "text", "text": "a fox"}]}]
    answer = ask("/rerank", model="pairs", query="a dog", documents=forms)
    assert len({result["relevance_score"] for result in answer["results"]}) == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ({"documents": ["b"]}, "query"),
        ({"query": "a"}, "documents"),
        ({"query": "a", "documents": [1]}, "documents"),
        ({"query": {"content": []}, "documents": [{}]}, "documents[0]"),
        ({"query": {"x": 1}, "documents": ["b"]}, "query"),
    ],
)
def test_rankings_that_are_refused(refused, body, words):
    refused("/rerank", words, model="pairs", **body)


# Tasks.


@pytest.mark.parametrize(
    ("model", "task"),
    [("embed", None), ("embed", "embed"), ("embed", "token_embed"), ("embed", "encode"), ("classes", "classify"),
     ("classes", "token_classify"), ("pairs", None)],
)  # fmt: skip
def test_pooling(llms, ask, model, task):
    expected = llms[model].encode([FOX, "a dog"], pooling_task=task, use_tqdm=False)
    answer = ask("/pooling", model=model, input=[FOX, "a dog"], task=task)
    assert answer["id"].startswith("pool")
    for i, (item, output) in enumerate(zip(answer["data"], expected, strict=True)):
        assert (item["index"], item["object"]) == (i, "pooling")
        np.testing.assert_allclose(item["data"], output.outputs.data, atol=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/pooling", {"model": "embed", "task": "classify", "input": "a"}, "Unsupported task: 'classify'"),
        ("/pooling", {"model": "classes", "task": "embed", "input": "a"}, "Unsupported task: 'embed'"),
        ("/pooling", {"model": "embed", "task": "nonsense", "input": "a"}, "Unsupported task: 'nonsense'"),
        ("/pooling", {"model": "classes", "input": "a", "dimensions": 4}, "dimensions"),
        ("/v1/embeddings", {"model": "classes", "input": "a"}, "The model does not support Embeddings API"),
        ("/classify", {"model": "embed", "input": "a"}, "The model does not support Classification API"),
        ("/score", {"model": "classes", "text_1": "a", "text_2": "b"}, "The model does not support Score API"),
        ("/rerank", {"model": "classes", "query": "a", "documents": ["b"]}, "does not support Rerank (Score) API"),
    ],
)
def test_a_task_that_the_model_has_not(refused, path, body, words):
    refused(path, words, **body)


# Tokens.


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("model", ["embed", "chat"])
def test_tokenize(llms, ask, model, special):
    tokenizer = llms[model].engine.tokenizer
    (ids,) = [encoded.ids.tolist() for encoded in tokenizer.encode([FOX], 10**6, special_tokens=special)]
    answer = ask("/tokenize", model=model, prompt=FOX, add_special_tokens=special)
    assert answer == {"count": len(ids), "max_model_len": 64, "tokens": ids, "token_strs": None}
    strings = ask("/tokenize", model=model, prompt=FOX, add_special_tokens=special, return_token_strs=True)
    assert strings["token_strs"] == tokenizer.tokens(ids)
    text = ask("/detokenize", model=model, tokens=ids)["prompt"]
    if not special:
        assert text == FOX


def test_tokenize_counts_more_than_the_model_reads(ask):
    assert ask("/tokenize", model="embed", prompt=LONG)["count"] == 182


def test_tokenize_a_conversation(ask):
    chat = ask("/tokenize", model="chat", messages=MESSAGES)
    assert chat["tokens"] == ask("/tokenize", model="chat", prompt=RENDERED)["tokens"]


TEMPLATE = (
    "{{ style }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}{{ ' so' if add_generation_prompt }}"
)
CHATS = [
    {},
    {"chat_template_kwargs": {"style": "hello nobody"}},
    {"continue_final_message": True},
    {"add_generation_prompt": True},
    {"add_special_tokens": True},
    {"chat_template": "{{ messages[1].content }} {{ style }}", "chat_template_kwargs": {"style": "my"}},
]


@pytest.mark.parametrize("how", CHATS, ids=lambda how: "+".join(how))
def test_tokenize_gives_the_ids_that_embeddings_reads(servings, how):
    app = make_app(servings, Settings(warm=False, chat=Chat(TEMPLATE, trust_requests=True)))
    client, body = TestClient(app), {"model": "chat", "messages": MESSAGES, **how}
    tokens = client.post("/tokenize", json=body).json()["tokens"]
    read = client.post("/v1/embeddings", json=body).json()
    again = client.post("/v1/embeddings", json={"model": "chat", "input": tokens}).json()
    assert read["usage"]["prompt_tokens"] == len(tokens)
    assert read["data"] == again["data"]


@pytest.mark.parametrize("path", ["/tokenize", "/v1/embeddings"])
def test_a_template_of_a_request_is_refused_alike(refused, path):
    body = {"messages": MESSAGES, "chat_template": "{{ messages }}"}
    refused(path, "--trust-request-chat-template is not set", model="chat", **body)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {}, "either `prompt` or `messages`"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "either `prompt` or `messages`"),
        ("/detokenize", {"tokens": [-1]}, "out of vocabulary"),
        ("/detokenize", {"tokens": [2**31]}, "out of vocabulary"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
    ],
)
def test_tokens_that_are_refused(refused, path, body, words):
    refused(path, words, model="embed", **body)


# Models, ids, errors.


def test_models(client, servings):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    names = [name for serving in servings for name in serving.names]
    assert [item["id"] for item in listed["data"]] == names
    assert {item["root"] for item in listed["data"]} == set(ARGUMENTS)
    assert {(item["object"], item["owned_by"], item["max_model_len"]) for item in listed["data"]} == {
        ("model", "jaxpool", 64)
    }
    for item in listed["data"]:
        (permission,) = item["permission"]
        assert permission["object"] == "model_permission"
        assert client.get(f"/v1/models/{item['id']}").json() == item
    assert client.get("/v1/models/").json() == listed


def test_a_model_whose_name_has_slashes(servings, monkeypatch):
    monkeypatch.setattr(servings[0], "names", ("an/organisation/s", "embed"))
    client = TestClient(make_app(servings, Settings(warm=False)))
    for path in ("/v1/models/an/organisation/s", "/v1/models/an%2Forganisation%2Fs"):
        assert client.get(path).json()["id"] == "an/organisation/s"
    missing = client.get("/v1/models/an/organisation")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "NotFoundError")
    assert missing.json()["error"]["message"] == "The model `an/organisation` does not exist."


@pytest.mark.parametrize("name", [None, "", "embed", "also-embed", "chat", "also-chat"])
def test_a_model_is_asked_by_any_of_its_names(llms, ask, name):
    body = {} if name is None else {"model": name}
    answer = ask("/v1/embeddings", input="a dog", **body)
    meant = (name or "embed").removeprefix("also-")
    assert answer["model"] == meant
    np.testing.assert_allclose(answer["data"][0]["embedding"], llms[meant].embed_array("a dog")[0], atol=1e-6)


@pytest.mark.parametrize("path", [*BODIES, "/tokenize", "/rerank"])
def test_a_model_that_is_not_served(refused, path):
    bodies = {"/tokenize": {"prompt": "a"}, "/rerank": {"query": "a", "documents": ["b"]}}
    body = bodies[path] if path in bodies else BODIES[path]("a")
    refused(path, "The model `nobody` does not exist.", 404, **(body | {"model": "nobody"}))


@pytest.mark.parametrize("path", [*BODIES, "/rerank"])
def test_a_request_s_own_id(client, path):
    body = BODIES[path]("a") if path in BODIES else {"model": "pairs", "query": "a", "documents": ["b"]}
    mine = body | {"request_id": "mine"}
    given = client.post(path, json=mine)
    assert given.json()["id"].endswith("-mine")
    # As in vLLM, the header comes first.
    given = client.post(path, json=mine, headers={"x-request-id": "yours"})
    assert given.json()["id"].endswith("-yours")
    assert given.headers["x-request-id"] == "yours"
    made = [client.post(path, json=body) for _ in range(2)]
    assert all(one.json()["id"].endswith("-" + one.headers["x-request-id"]) for one in made)
    assert made[0].json()["id"] != made[1].json()["id"]
    assert made[0].headers["x-request-id"] != made[1].headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("post", "/v1/embeddings", 400, "BadRequestError"),
        ("post", "/nothing", 404, "NotFoundError"),
        ("get", "/v1/embeddings", 405, "MethodNotAllowed"),
    ],
)
def test_errors_have_both_forms(client, method, path, status, kind):
    response = client.request(method, path, headers={"x-request-id": "mine"})
    error = response.json()
    assert response.status_code == status
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert (error["error"]["type"], error["error"]["code"]) == (kind, status)
    assert error == error["error"] | {"error": error["error"], "object": "error", "error_type": "Validation"}
    assert response.headers["x-request-id"] == "mine"


@pytest.mark.parametrize("size", ["said", "unsaid"])
def test_a_body_that_is_too_long(client, size):
    content = b"x" * 2_000_000
    parts = content if size == "said" else (content[i : i + 10**5] for i in range(0, len(content), 10**5))
    response = client.post("/v1/embeddings", content=parts, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert "1000000 bytes" in response.json()["message"]


# Keys and pages.


@pytest.fixture(scope="module")
def guarded(servings):
    return TestClient(make_app(servings, Settings(keys=("one", "two"), warm=False)))


@pytest.mark.parametrize("path", OPEN)
def test_open_paths(guarded, path):
    assert guarded.get(path).status_code != 401


@pytest.mark.parametrize("path", [*GUARDED, *BODIES, "/rerank", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_guarded_paths(guarded, method, path):
    wrong = [{}, {"authorization": "Bearer three"}, {"authorization": "Basic one"}, {"authorization": "one"}]
    for headers in wrong:
        response = guarded.request(method, path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["message"] == "Unauthorized"
        assert response.headers["www-authenticate"] == "Bearer"
    for key in ("one", "two"):
        assert guarded.request(method, path, headers={"authorization": f"Bearer {key}"}).status_code != 401


def test_the_page_is_open_and_what_stands_behind_it_is_not(guarded):
    assert guarded.get("/").status_code == 200
    assert guarded.post("/", json={"inputs": "a"}).status_code == 401
    assert guarded.post("/ping").status_code == 200


def test_no_page_may_ask_unless_it_is_said(client, servings):
    preflight = {"origin": "https://example.org", "access-control-request-method": "POST"}
    assert not [name for name in client.options("/v1/embeddings", headers=preflight).headers if "allow-origin" in name]
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=preflight).headers
    app = make_app(servings, Settings(pages=Pages(["https://example.org"], ["POST"]), keys=("one",), warm=False))
    page = TestClient(app, headers={"origin": "https://example.org"})
    allowed = page.options("/v1/embeddings", headers=preflight)
    assert allowed.headers["access-control-allow-origin"] == "https://example.org"
    assert page.options("/", headers={**preflight, "access-control-request-method": "GET"}).status_code == 400
    refused = page.get("/v1/models")  # what is wrong is for the page to read
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://example.org"
    readable = refused.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "x-truncated-texts", "retry-after"} <= set(readable)
    stranger = TestClient(app).get("/v1/models", headers={"origin": "https://example.com"})
    assert "access-control-allow-origin" not in stranger.headers


# Behind a proxy.


@pytest.fixture(scope="module")
def prefixed(servings):
    return TestClient(make_app(servings, Settings(keys=("one",), root_path="/api", warm=False)))


@pytest.mark.parametrize("prefix", ["", "/api"], ids=["taken away", "kept"])
def test_paths_behind_a_proxy(prefixed, prefix):
    for path in OPEN:
        assert prefixed.get(prefix + path).status_code != 401, path
    assert prefixed.get(f"{prefix}/").status_code == 200
    for path in (*GUARDED, "/healthy", "/api/health/../v1/models"):
        assert prefixed.get(prefix + path).status_code == 401, path
    key = {"authorization": "Bearer one"}
    answer = prefixed.post(f"{prefix}/v1/embeddings", json={"input": FOX}, headers=key)
    assert answer.status_code == 200
    assert prefixed.get(f"{prefix}/nothing", headers=key).status_code == 404


@pytest.mark.parametrize("path", ["/apis/health", "/api/api/health", "/apihealth", "/v1/health"])
def test_paths_that_only_look_like_open_ones(prefixed, path):
    assert prefixed.get(path).status_code == 401


def test_a_prefix_is_no_endpoint_of_its_own(prefixed):
    """Metrics count a request by its path within the application."""
    key = {"authorization": "Bearer one"}

    def counted():
        lines = prefixed.get("/metrics", headers=key).text.splitlines()
        found = [line for line in lines if line.startswith("jaxpool_requests_total{") and '="/version"' in line]
        return sum(float(line.split()[-1]) for line in found), [line for line in lines if "/api" in line]

    before, _ = counted()
    for prefix in ("", "/api"):
        prefixed.get(f"{prefix}/version", headers=key)
    after, wrong = counted()
    assert after == before + 2
    assert not wrong


# Conversations, as the server's flags say they are read.


@pytest.mark.parametrize(
    ("content_format", "template", "text"),
    [
        ("auto", "{{ messages[0].content }}", "the quick fox"),
        ("string", "{{ messages[0].content }}", "the quick fox"),
        ("openai", "{{ messages[0].content[0].text }} {{ messages[0].content[0].type }}", "the quick fox text"),
        ("auto", "{{ word }} {{ messages[1].content }}", "hello a lazy dog"),
    ],
)
def test_how_the_server_has_templates_read(servings, content_format, template, text):
    chat = Chat(template, content_format=content_format, values={"word": "hello"})
    asking = TestClient(make_app(servings, Settings(warm=False, chat=chat)))

    def vectors(**body):
        return asking.post("/v1/embeddings", json={"model": "chat", **body}).json()["data"]

    assert vectors(messages=MESSAGES) == vectors(input=text, add_special_tokens=False)
    if "word" in template:
        own = vectors(messages=MESSAGES, chat_template_kwargs={"word": "search"})
        assert own == vectors(input=text.replace("hello", "search"), add_special_tokens=False)
