"""Pictures over the API, and in scores: the vectors are `LLM`'s, and whatever is no picture is refused by its name."""

import argparse
import asyncio
import base64
import gc
import io
import json
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from jaxpool import LLM
from jaxpool.image_chat_templates import STYLES, default_template, takes_parts
from jaxpool.server import command, flags, pictures, spelling
from jaxpool.server.app import Settings, make_app
from jaxpool.server.chat import Chat
from jaxpool.server.errors import ApiError
from jaxpool.server.limits import Limits
from jaxpool.server.pictures import Allowed
from jaxpool.server.protocol import TextBody
from jaxpool.server.serving import Serving
from tests.tiny import CHAT, tiny_bert, tiny_classifier, tiny_clip

Image = pytest.importorskip("PIL.Image")

MODEL = "clip"
JSON = {"content-type": "application/json"}  # written here: clients refuse to send what is no Unicode
STRINGS = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"


def noise(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


PICTURES = [noise(*size, seed=i) for i, size in enumerate([(40, 30), (28, 28), (9, 50), (64, 64)])]


def written(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def url_of(given, kind="png"):
    content = given if isinstance(given, bytes) else written(given)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def linked(given):
    url = given if isinstance(given, str) else url_of(given)
    return {"type": "image_url", "image_url": {"url": url}}


def text(words):
    return {"type": "text", "text": words}


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


@pytest.fixture(scope="module")
def written_clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def llm(written_clip):
    """The oracle, with an engine of its own."""
    with LLM(written_clip, data_parallel_size=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def vectors(llm):
    """The pictures' vectors, each behind the other."""
    return np.array([output.outputs.embedding for output in llm.embed(PICTURES, use_tqdm=False)])


ASKED = []
RELEASED = threading.Event()


class Host(BaseHTTPRequestHandler):
    """A host of pictures on loopback."""

    asked = ASKED

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "http://example.com/picture.png")
            self.end_headers()
            return
        if self.path == "/slow":
            time.sleep(0.5)
        if self.path == "/held":
            RELEASED.wait(5)
        content = {"/text": b"no picture"}.get(self.path, written(PICTURES[0]))
        self.send_response(404 if self.path == "/nothing" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def servings(written_clip, tmp_path_factory):
    directory = tmp_path_factory.mktemp("others")
    models = {
        MODEL: LLM(written_clip, data_parallel_size=1),
        "bert": LLM(tiny_bert(directory / "bert", layers=1), data_parallel_size=1),
        "pairs": LLM(tiny_classifier(directory / "pairs", labels=1), data_parallel_size=1),
    }
    servings = [Serving(llm, (name,), Limits(texts=16)) for name, llm in models.items()]
    yield servings
    for serving in servings:
        serving.close()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The one that file:// may read, with a secret beside it."""
    outer = tmp_path_factory.mktemp("files")
    (outer / "allowed").mkdir()
    (outer / "allowed" / "a b.png").write_bytes(written(PICTURES[0]))
    (outer / "secret.png").write_bytes(written(PICTURES[1]))
    (outer / "allowed" / "link.png").symlink_to(outer / "secret.png")
    return outer / "allowed"


def asking(servings, allowed=None, chat=None):
    """What POSTs bodies to an application of its own; models stay open behind it."""
    app = make_app(servings, Settings(warm=False, pictures=allowed or Allowed(), chat=chat or Chat()))
    client = TestClient(app, raise_server_exceptions=False)  # without its life: the models are others' too

    def ask(path, status=200, **body):
        response = client.post(path, content=json.dumps({"model": MODEL} | body), headers=JSON)
        assert response.status_code == status, response.text
        return response.json()

    ask.app = app
    return ask


@pytest.fixture(scope="module")
def closed(servings):
    """A server as it is by default: pictures come with the request."""
    return asking(servings)


@pytest.fixture(scope="module")
def opened(servings, directory):
    return asking(servings, Allowed(("127.0.0.1", "*.example.org"), directory))


@pytest.fixture
def refused(closed):
    def refused(words, messages, ask=closed, path="/v1/embeddings", **body):
        message = ask(path, 400, messages=messages, **body)["error"]["message"]
        assert words in message, message
        assert " at 0x" not in message
        return message

    return refused


# Vectors.


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling", "/invocations"])
def test_pictures_have_the_vectors_that_llm_gives(closed, vectors, path):
    for picture, expected in zip(PICTURES, vectors, strict=True):
        answer = closed(path, messages=user(linked(picture)))
        (item,) = answer["data"]
        np.testing.assert_allclose(item.get("embedding", item.get("data")), expected, atol=1e-6)
        assert answer["usage"]["prompt_tokens"] == 17  # 4 × 4 patches and the class token


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": url_of(PICTURES[0])},
        {"type": "image_url", "image_url": {"url": url_of(PICTURES[0]), "detail": "high"}},
        linked(url_of(PICTURES[0]).replace("=", "%3D").replace("+", "%2B")),
        linked("DATA:;BASE64," + url_of(PICTURES[0]).partition(",")[2]),
    ],
    ids=["plain", "detail", "percent", "capitals"],
)
def test_spellings_of_a_data_url(closed, vectors, part):
    (item,) = closed("/v1/embeddings", messages=user(part))["data"]
    np.testing.assert_allclose(item["embedding"], vectors[0], atol=1e-6)


@pytest.mark.parametrize("field", ["messages", "input"])
def test_pictures_of_several_conversations(closed, refused, vectors, field):
    several = [user(linked(PICTURES[1])), user(text("a cat")), user(linked(PICTURES[0]))]
    found = [item["embedding"] for item in closed("/v1/embeddings", **{field: several})["data"]]
    (word,) = closed("/v1/embeddings", input="a cat")["data"]
    np.testing.assert_allclose(found, [vectors[1], word["embedding"], vectors[0]], atol=1e-6)
    assert "messages[1][0].content[0]" in refused("is no picture", [several[0], user(linked(b"no picture"))])


def test_an_empty_text_beside_a_picture_is_none(closed, vectors):
    messages = [{"role": "system", "content": ""}, *user(text(""), linked(PICTURES[0]))]
    (item,) = closed("/v1/embeddings", messages=messages)["data"]
    np.testing.assert_allclose(item["embedding"], vectors[0], atol=1e-6)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "a cat\nor"}],
        user(text("a cat"), text("or")),
        [{"role": "system", "content": "a cat\n"}, *user(text("or"))],
    ],
)
def test_a_text_in_messages_is_that_text(closed, messages):
    chat = closed("/v1/embeddings", messages=messages)
    plain = closed("/v1/embeddings", input="a cat\nor")
    assert (chat["data"], chat["usage"]) == (plain["data"], plain["usage"])


def test_options_reach_the_processor(closed, llm):
    options = {"size": {"shortest_edge": 60}}
    prompt = {"multi_modal_data": {"image": PICTURES[3]}, "mm_processor_kwargs": options}
    (expected,) = llm.embed([prompt], use_tqdm=False)
    (item,) = closed("/v1/embeddings", messages=user(linked(PICTURES[3])), mm_processor_kwargs=options)["data"]
    np.testing.assert_allclose(item["embedding"], expected.outputs.embedding, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nonsense": 1}, "['nonsense'] are not known to CLIPImageProcessor"),
        ({"do_normalize": False}, "the checkpoint's own affair"),
        ({"size": {"shortest_edge": 10**6}}, "'size' has 1000000, at most 512"),
        ({"size": [[{"height": 10**400}]]}, "at most 512"),
        ({"num_crops": 2000}, "'num_crops' has 2000, at most 1024"),
        ({"max_pixels": 10**9}, "'max_pixels' has"),
        ({"crop_size": {"height": 14, "width": 14}}, "the model takes 28"),
        ({"size": "large"}, "mm_processor_kwargs"),
        ({"do_resize": {}}, "mm_processor_kwargs"),
    ],
)
def test_options_that_are_refused(refused, options, words):
    refused(words, user(linked(PICTURES[3])), mm_processor_kwargs=options)


# One text, or one picture.


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (user(text("a cat"), linked(PICTURES[0])), "1 picture(s) and 1 text(s)"),
        ([{"role": "system", "content": "be kind"}, *user(linked(PICTURES[0]))], "1 picture(s) and 1 text(s)"),
        (user(linked(PICTURES[0]), linked(PICTURES[1])), "2 picture(s)"),
    ],
)
def test_both_or_several(refused, messages, words):
    assert "embeds a text or one picture" in refused(words, messages)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"type": "video_url", "video_url": {"url": "data:,"}}], "messages[0].content[0]: parts of type 'video_url'"),
        ([text(""), {"type": "image_url"}], "messages[0].content[1]: expected {'image_url'"),
        ([{"type": "image_url", "image_url": {"url": 3}}], "messages[0].content[0]: expected"),
        ([{"type": "image_pil", "image_pil": "/etc/passwd"}], "messages[0].content[0]: expected"),
        ([{"type": ["text"]}], "messages[0].content[0]: parts of type None"),
        ([3], "messages[0].content[0]: parts of type None"),
        ([{"type": "text", "text": 3}], "messages[0].content[0]: expected a text"),
        (3, "messages[0].content"),
        (None, "messages[0].content"),
        ({"url": "data:,"}, "messages[0].content"),
    ],
)
def test_parts_that_are_none(refused, content, words):
    refused(words, [{"role": "user", "content": content}])


def test_a_message_without_content(refused):
    refused("messages[0].content", [{"role": "user"}])


def test_models_that_do_not_see_fetch_nothing(opened, host):
    before = len(ASKED)
    for path, model in (("/v1/embeddings", "bert"), ("/pooling", "pairs")):
        message = opened(path, 400, model=model, messages=user(linked(f"{host}/a.png")))["message"]
        assert "'image_url' are not supported by this model" in message
    assert len(ASKED) == before


def test_only_texts_are_tokenised(closed):
    message = closed("/tokenize", 400, messages=user(linked(PICTURES[0])))["message"]
    assert "messages[0].content[0]" in message
    assert closed("/tokenize", messages=user(text("a")))["count"] == 3
    assert closed("/tokenize", messages=user(text("a")), add_special_tokens=False)["count"] == 1


def test_pictures_have_one_vector(refused):
    refused("for texts", user(linked(PICTURES[0])), path="/pooling", task="token_embed")


# URLs.


def test_allowed_hosts(opened, host, vectors):
    (item,) = opened("/v1/embeddings", messages=user(linked(f"{host}/a.png")))["data"]
    np.testing.assert_allclose(item["embedding"], vectors[0], atol=1e-6)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/elsewhere", "this host is not allowed"),
        ("/nothing", "status 404"),
        ("/text", "is no picture"),
    ],
)
def test_urls_that_give_nothing(refused, opened, host, path, words):
    message = refused(words, user(text(""), linked(host + path)), opened)
    assert message.startswith("messages[0].content[1]: ")
    assert "127.0.0.1" not in message


@pytest.mark.parametrize(
    "url", ["http://localhost/a.png", "http://example.com/a.png", "http://127.0.0.2/a.png", "http://[::1]/a.png"]
)
def test_hosts_that_are_not_allowed(refused, opened, url):
    refused("messages[0].content[0]: this host is not allowed", user(linked(url)), opened)


def test_a_url_in_time(servings, host, monkeypatch):
    ask = asking(servings, Allowed(("127.0.0.1",)))
    from jaxpool.images import fetching

    usual = fetching.Fetching
    monkeypatch.setattr(fetching, "Fetching", lambda *given: usual(*given, seconds=0.1))
    late = asking(servings, Allowed(("127.0.0.1",)))
    messages = user(linked(f"{host}/slow"))
    assert "did not come within 0.1 s" in late("/v1/embeddings", 400, messages=messages)["message"]
    ask("/v1/embeddings", messages=messages)


def test_slow_urls_hold_nobody_up(opened, host):
    async def both():
        transport = httpx.ASGITransport(opened.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://served") as client:
            messages = user(linked(f"{host}/held"))
            held = asyncio.create_task(client.post("/v1/embeddings", json={"model": MODEL, "messages": messages}))
            while "/held" not in ASKED:
                await asyncio.sleep(0.01)
            answer = await client.post("/v1/embeddings", json={"model": MODEL, "input": "a text"})
            assert not held.done()
            RELEASED.set()
            assert (answer.status_code, (await held).status_code) == (200, 200)

    asyncio.run(both())


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.png", "https://example.com/a.png"])
def test_no_hosts_by_default(refused, url):
    refused("messages[0].content[0]: http(s) URLs are not allowed here", user(linked(url)))


def test_no_files_by_default(refused, directory):
    refused("file:// URLs are not allowed here", user(linked((directory / "a b.png").as_uri())))


def test_files(opened, directory, vectors):
    (item,) = opened("/v1/embeddings", messages=user(linked((directory / "a b.png").as_uri())))["data"]
    np.testing.assert_allclose(item["embedding"], vectors[0], atol=1e-6)


@pytest.mark.parametrize("name", ["../secret.png", "link.png", "../nothing.png", "nothing.png", "\0", "..", "%2e%2e/x"])
def test_files_that_are_not_there(refused, opened, directory, name):
    message = refused("messages[0].content[0]: ", user(linked(f"file://{directory}/{name}")), opened)
    assert str(directory.parent) not in message


@pytest.mark.parametrize(
    "url", ["", "picture.png", "/etc/passwd", "ftp://127.0.0.1/a", "data:", "data:;base64,%%", "\ud800"]
)
def test_urls_that_are_none(refused, opened, url):
    refused("messages[0].content[0]: ", user(linked(url)), opened)


def test_wrong_hosts_are_told_at_the_start(servings):
    with pytest.raises(ValueError, match="hosts: expected host names"):
        asking(servings, Allowed(("http://example.com",)))


# Limits.


def test_bytes(servings, refused):
    content = written(PICTURES[0])
    ask = asking(servings, Allowed(bytes=len(content)))
    ask("/v1/embeddings", messages=user(linked(content and url_of(content))))
    refused("has more than", user(linked(url_of(written(noise(60, 60))))), ask)


def test_pixels(servings, refused, monkeypatch):
    ask = asking(servings, Allowed(pixels=30 * 40))
    ask("/v1/embeddings", messages=user(linked(PICTURES[0])))
    refused("messages[0].content[0]: is 41×30 pixels, at most 1200", user(linked(noise(41, 30))), ask)
    monkeypatch.setattr(pictures, "TOGETHER", 2)
    ask = asking(servings, Allowed(pixels=30 * 40))
    many = {"data_1": {"content": [linked(PICTURES[0])]}, "data_2": [{"content": [linked(PICTURES[0])]}] * 2}
    assert "2400 pixels together" in ask("/score", 400, **many)["message"]


def test_lines_are_refused(refused):
    refused("messages[0].content[0]: is 201×1 pixels", user(linked(noise(201, 1))))
    refused("is 1×500 pixels", user(linked(noise(1, 500))))


def test_pictures_of_a_prompt(servings, refused, closed):
    none = asking(servings, Allowed(per_prompt=0))
    words = "messages[0].content[0]: At most 0 image(s) may be provided in one prompt."
    refused(words, user(linked(PICTURES[0])), none)
    none("/v1/embeddings", messages=user(text("a")))
    two = asking(servings, Allowed(per_prompt=2))
    refused(
        "messages[1].content[0]: At most 2", [*user(linked(PICTURES[0]), linked(PICTURES[0])), *user(linked(""))], two
    )
    # Each side is a prompt of its own.
    one = asking(servings, Allowed(per_prompt=1))
    one("/score", data_1={"content": [linked(PICTURES[0])]}, data_2=[{"content": [linked(PICTURES[1])]}] * 3)


def test_too_many_inputs_are_not_opened(closed, refused):
    sides = {"data_1": "a", "data_2": [{"content": [linked("broken")]}] * 17}
    assert "at most 16" in closed("/score", 413, **sides)["message"]
    assert "at most 16" in closed("/v2/embed", 413, images=["broken"] * 17)["message"]


def test_flags(tmp_path):
    parser = argparse.ArgumentParser()
    flags.add_arguments(parser)

    def allowed(*words):
        return command.settings(parser.parse_args(spelling.as_argparse(words))).pictures

    assert allowed() == Allowed(bytes=8 * 2**20)
    given = allowed(
        "--allowed-media-domains", "a.example", "b.example", "--allowed_local_media_path", str(tmp_path),
        "--limit-mm-per-prompt", '{"image": 3, "video": 0}', "--max-image-bytes", "10", "--max-image-pixels", "20",
    )  # fmt: skip
    assert given == Allowed(("a.example", "b.example"), tmp_path, 10, 20, 3)
    for words, match in (
        (("--allowed-local-media-path", str(tmp_path / "nowhere")), "no directory"),
        (("--limit-mm-per-prompt", '{"images": 3}'), "not known"),
        (("--limit-mm-per-prompt", '{"image": "3"}'), "expected a number"),
        (("--limit-mm-per-prompt", '{"image": -1}'), "at least 0"),
        (("--max-image-pixels", "0"), "at least 1"),
    ):
        with pytest.raises(ValueError, match=match):
            allowed(*words)


# What may be wrong with a picture.


def test_awkward_pictures_are_right(closed, llm):
    frames = [noise(20, 20, seed=i) for i in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 72)
    awkward = {
        "1×1": written(noise(1, 1)),
        "animated": written(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "cmyk": written(noise(30, 40).convert("CMYK"), "JPEG"),
        "16 bits": written(grey),
        "exif": written(noise(30, 60), "JPEG", exif=exif),
        "transparent": written(noise(30, 30).convert("RGBA")),
        "one bit": written(noise(30, 30).convert("1")),
        "palette": written(noise(30, 30).convert("P")),
        "200:1": written(noise(200, 1)),
    }
    prompts = [{"multi_modal_data": {"image": content}} for content in awkward.values()]
    expected = llm.embed(prompts, use_tqdm=False)
    for (name, content), output in zip(awkward.items(), expected, strict=True):
        (item,) = closed("/v1/embeddings", messages=user(linked(url_of(content))))["data"]
        np.testing.assert_allclose(item["embedding"], output.outputs.embedding, atol=1e-6, err_msg=name)


def test_broken_pictures_are_named(refused):
    content = written(noise(64, 64))
    header = content[12:16] + (60_000).to_bytes(4, "big") * 2 + content[24:29]
    wide = content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]
    broken = {
        b"": "is empty",
        content[: len(content) // 2]: "broken, cut off",
        content[:20]: "broken|is no picture",
        b"GIF89a": "broken|is no picture",
        b"<svg/>": "is no picture",
        wide: "pixels",
    }
    for content, words in broken.items():
        message = refused(
            "messages[1].content[1]: ", [{"role": "system", "content": ""}, *user(text(""), linked(url_of(content)))]
        )
        assert any(word in message for word in words.split("|")), message


def test_without_pillow(closed, monkeypatch):
    def missing(*_):
        raise ImportError("pictures need pillow")

    monkeypatch.setattr(pictures, "open_image", missing)
    answer = closed("/v1/embeddings", 501, messages=user(linked(PICTURES[0])))
    assert answer["message"] == "pictures are not installed on this server"


# Scores.


@pytest.fixture(scope="module")
def cosines(llm, vectors):
    (words,) = llm.embed("a cat", use_tqdm=False)
    return vectors @ np.array(words.outputs.embedding)


def test_scores(closed, cosines, vectors):
    contents = [{"content": [linked(picture)]} for picture in PICTURES]
    answer = closed("/score", queries="a cat", documents=contents)
    np.testing.assert_allclose([item["score"] for item in answer["data"]], cosines, atol=1e-5)
    answer = closed("/v1/score", data_1=contents[0], data_2=contents)
    np.testing.assert_allclose([item["score"] for item in answer["data"]], vectors @ vectors[0], atol=1e-5)
    answer = closed("/score", text_1=contents, text_2=["a cat"] * 3 + [{"content": [text("a "), text("cat")]}])
    np.testing.assert_allclose([item["score"] for item in answer["data"]], cosines, atol=1e-5)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank(closed, cosines, path):
    contents = [{"content": [linked(picture)]} for picture in PICTURES]
    answer = closed(path, query="a cat", documents=[*contents, "a cat"], max_tokens_per_doc=10)
    ranked = [(result["index"], result["relevance_score"]) for result in answer["results"]]
    assert [index for index, _ in ranked] == [4, *np.argsort(-cosines)]
    np.testing.assert_allclose([score for _, score in ranked], [1, *np.sort(cosines)[::-1]], atol=1e-5)
    assert answer["results"][0]["document"] == {"text": "a cat"}
    assert answer["results"][1]["document"] == {"multi_modal": contents[ranked[1][0]]["content"]}
    answer = closed(path, query=contents[1], documents=contents, top_n=1)
    assert [result["index"] for result in answer["results"]] == [1]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"queries": "a", "documents": [{"content": [text("a"), linked("x")]}]}, "documents[0].content[1]: "),
        ({"queries": "a", "documents": {"content": [text("b"), linked(PICTURES[0])]}}, "1 picture(s) and 1 text(s)"),
        ({"queries": {"content": [{"type": "video_url"}]}, "documents": "b"}, "queries[0].content[0]: parts of type"),
        ({"queries": {"content": [linked(b"")]}, "documents": "b"}, "queries[0].content[0]: is empty"),
        ({"queries": {"content": 3}, "documents": "b"}, "queries[0]: expected a text"),
        ({"queries": {"contents": []}, "documents": "b"}, "queries[0]: expected a text"),
        ({"model": "pairs", "queries": "a", "documents": {"content": [linked(PICTURES[0])]}}, "MultiModalParam is not"),
        ({"model": "bert", "queries": "a", "documents": {"content": [linked(PICTURES[0])]}}, "MultiModalParam is not"),
        ({"queries": "a", "documents": {"content": [linked(PICTURES[0])]}, "mm_processor_kwargs": {"x": 1}},
         "documents[0].content[0]"),
    ],
)  # fmt: skip
def test_scores_that_are_refused(closed, body, words):
    assert words in closed("/score", 400, **body)["message"]


def test_scores_offline(llm, cosines, vectors):
    contents = [{"content": [linked(picture)]} for picture in PICTURES]
    for sides in (("a cat", contents), ("a cat", PICTURES), (PICTURES, [{"content": [text("a cat")]}] * 4)):
        scores = [output.outputs.score for output in llm.score(*sides, use_tqdm=False)]
        np.testing.assert_allclose(scores, cosines, atol=1e-5)
    (output,) = llm.score(PICTURES[0], {"content": [{"type": "image_pil", "image_pil": PICTURES[1]}]}, use_tqdm=False)
    np.testing.assert_allclose(output.outputs.score, vectors[0] @ vectors[1], atol=1e-5)


def test_rerank_offline(llm, cosines):
    ranked = llm.rerank("a cat", PICTURES, return_documents=True)
    assert [item.index for item in ranked] == list(np.argsort(-cosines))
    assert ranked[0].document is PICTURES[ranked[0].index]
    assert llm.rerank(PICTURES[2], PICTURES, 1)[0].index == 2


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"content": [linked("http://example.com/a.png")]}, r"data_2\[0\].content\[0\]: only data: URLs are read here"),
        ({"content": [linked("/etc/passwd")]}, "only data: URLs are read here"),
        ({"content": [text("a"), linked(PICTURES[0])]}, "embeds a text or one picture"),
        ({"content": "a text"}, "expected a text"),
        ({"content": [{"type": "image_url"}]}, r"data_2\[0\].content\[0\]: expected"),
    ],
)
def test_offline_scores_that_are_refused(llm, item, words):
    with pytest.raises(ValueError, match=words):
        llm.score("a", [item], use_tqdm=False)


# Cohere's.


def test_cohere(closed, vectors):
    answer = closed("/v2/embed", images=[url_of(picture) for picture in PICTURES])
    np.testing.assert_allclose(answer["embeddings"]["float"], vectors, atol=1e-6)
    assert "texts" not in answer
    assert answer["meta"]["billed_units"] == {"input_tokens": 0, "image_tokens": 4 * 17}
    contents = [{"content": [linked(PICTURES[2])]}, {"content": [text("a cat")]}]
    answer = closed("/v2/embed", inputs=contents, input_type="search_document")
    np.testing.assert_allclose(answer["embeddings"]["float"][0], vectors[2], atol=1e-6)
    plain = closed("/v2/embed", texts=["a cat"])
    np.testing.assert_allclose(answer["embeddings"]["float"][1], plain["embeddings"]["float"][0], atol=1e-6)
    assert answer["meta"]["billed_units"] == {"input_tokens": 7, "image_tokens": 17}
    assert plain["texts"] == ["a cat"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"images": ["x"]}, "images[0]: expected a URL"),
        ({"images": [url_of(PICTURES[0]), url_of(b"x")]}, "images[1]: is no picture"),
        ({"images": [3]}, "images"),
        ({"images": []}, "at least one prompt"),
        ({"inputs": [{"content": [text("a"), linked(PICTURES[0])]}]}, "inputs[0].content: this model embeds a text or"),
        ({"inputs": [{"content": [text("a"), linked("x")]}]}, "inputs[0].content[1]: expected a URL"),
        ({"inputs": [{"content": []}]}, "inputs[0]: expected"),
        ({"inputs": [{"content": [{"type": "video"}]}]}, "inputs[0].content[0]: parts of type 'video'"),
        ({"model": "bert", "images": [url_of(PICTURES[0])]}, "this model takes texts only"),
        ({"model": "bert", "inputs": [{"content": [linked(PICTURES[0])]}]}, "this model takes texts only"),
    ],
)
def test_cohere_refuses(closed, body, words):
    assert words in closed("/v2/embed", 400, **body)["message"]


# Prompts of families whose pictures stand in texts.


def seeing(family, template=None):
    """A model as far as `Chat` looks at it."""
    tower = SimpleNamespace(answers=False)
    recipe = SimpleNamespace(family=SimpleNamespace(name=family, tower=tower))
    tokenizer = SimpleNamespace(chat_template=template, special_tokens={"bos_token": "<s>"})
    return SimpleNamespace(recipe=recipe, llm=SimpleNamespace(engine=SimpleNamespace(tokenizer=tokenizer)))


def shown(number=0):
    return {"type": "image_pil", "image_pil": PICTURES[number]}


DSE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|endoftext|>"
E5_V = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n \n"
VISION = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}" + VISION + "{% elif 'text' in c %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize(
    ("family", "template", "parts", "prompt"),
    [
        ("qwen2_vl", None, [shown(), text("what")], DSE.format(VISION + "what")),
        ("qwen2_vl", None, [text("what")], DSE.format("what")),
        ("qwen2_vl", QWEN, [text("a"), shown(), shown(1), text("b")], f"<|im_start|>user\na{VISION * 2}b<|im_end|>\n"),
        ("qwen2_vl", CHAT, [text("a"), shown(), text("b")], f"<|im_start|>user\n{VISION}\na\nb<|im_end|>\n"),
        ("qwen2_vl", CHAT, [text(f"a {VISION} b"), shown()], f"<|im_start|>user\na {VISION} b<|im_end|>\n"),
        ("llava_next", None, [shown(), text("Summary:")], E5_V.format("<image>\nSummary:")),
        ("llava_next", STRINGS, [shown(), text("a"), shown(1)], "<user><image>\n<image>\na"),
        ("phi3_v", None, [shown(), text("a"), shown(1)], "<|image_1|> a <|image_2|>"),
        ("phi3_v", STRINGS, [shown(), shown(1)], "<user><|image_1|>\n<|image_2|>"),
        ("phi3_v", STRINGS, [shown(), text("<|image_1|> a")], "<user><|image_1|> a"),
    ],
)
def test_prompts_with_pictures(family, template, parts, prompt):
    found = Chat().render(seeing(family, template), TextBody(messages=user(*parts)))
    pictures = [part["image_pil"] for part in parts if "image_pil" in part]
    if not pictures:
        assert found == prompt
        return
    assert found.prompt == prompt
    assert all(a is b for a, b in zip(found.pictures, pictures, strict=True))


def test_pictures_are_numbered_through_a_conversation():
    messages = [*user(shown(), text("a")), {"role": "assistant", "content": "b"}, *user(shown(1), text("c"))]
    found = Chat(STRINGS).render(seeing("phi3_v"), TextBody(messages=messages))
    assert found.prompt == "<user><|image_1|>\na<assistant>b<user><|image_2|>\nc"
    assert found.name == "messages"


def test_names_of_templates():
    body = TextBody(messages=user(shown(), text("a")))
    assert Chat("dse_qwen2_vl").render(seeing("qwen2_vl", QWEN), body).prompt == DSE.format(VISION + "a")
    assert Chat("dse_qwen2_vl").adds_special_tokens(seeing("qwen2_vl", QWEN), body)
    assert Chat().adds_special_tokens(seeing("qwen2_vl"), body)
    assert not Chat().adds_special_tokens(seeing("qwen2_vl", QWEN), body)
    assert not Chat(QWEN).adds_special_tokens(seeing("qwen2_vl"), body)
    two = TextBody(messages=[*user(text("a")), *user(text("b"))])
    with pytest.raises(ValueError, match="one message at a time"):
        Chat().render(seeing("phi3_v"), two)


def test_a_family_that_nobody_knows():
    body = TextBody(messages=user(shown()))
    with pytest.raises(ValueError, match="no chat template"):
        Chat().render(seeing("new"), body)
    with pytest.raises(ValueError, match="no placeholder"):
        Chat(STRINGS).render(seeing("new"), body)
    assert Chat(QWEN).render(seeing("new"), body).prompt == f"<|im_start|>user\n{VISION}<|im_end|>\n"


def test_templates():
    assert {name: takes_parts(default_template(name)) for name in STYLES} == {
        name: style.placeholder is not None for name, style in STYLES.items()
    }
    assert takes_parts(QWEN)
    for template in (CHAT, STRINGS, "{% for %}", "{{ messages[0].content.text }}", "{{ 1 / 0 }}", "constant"):
        assert not takes_parts(template)


def test_the_pictures_of_all_requests_have_room_together():
    held = pictures._Held(100)
    first = Image.new("RGB", (8, 10))
    held.hold(first)
    second = Image.new("RGB", (5, 5))
    with pytest.raises(ApiError) as refused:
        held.hold(second)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "1")
    del first  # answered
    gc.collect()
    held.hold(second)
    large = Image.new("RGB", (50, 50))
    del second, refused
    gc.collect()
    held.hold(large)  # alone it is no matter of others
