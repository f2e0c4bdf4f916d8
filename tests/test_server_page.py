"""The page at `/`: what it is made of, who gets its data, and, in a browser, what a person can do with it."""

import base64
import hashlib
import importlib.util
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

import jaxpool
from jaxpool import LLM
from jaxpool.server.app import Settings, make_app
from jaxpool.server.limits import Limits
from jaxpool.server.serving import Serving
from tests.servers import running
from tests.tiny import tiny_bert, tiny_classifier

KEY = "s3cret"
MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories: one that embeds, and a classifier, whose answers are no scores."""
    root = tmp_path_factory.mktemp("models")
    return tiny_bert(root / "embed"), tiny_classifier(root / "classify", labels=3)


def servings(*directories):
    return [Serving(LLM(path), (path.name, f"{path.name}-2"), Limits()) for path in directories]


@pytest.fixture(scope="module")
def client(models):
    with TestClient(make_app(servings(*models), Settings(keys=[KEY], warm=False))) as client:
        yield client


def test_the_page_needs_no_key_and_fetches_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"https?://|//[a-z]|@import|url\(", answer.text)
    assert "innerHTML" not in answer.text
    assert KEY not in answer.text


def test_its_policy_lets_its_own_script_and_style_run_and_nothing_else(client):
    answer = client.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"\s(style|on\w+)=", answer.text), "the policy forbids attributes that are code"


def test_it_is_installed():
    root = Path(jaxpool.__file__).parent
    data = tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["jaxpool"]
    assert root / "server" / "page.html" in {path for pattern in data for path in root.glob(pattern)}


def test_it_asks_below_its_own_address(client):
    """So that it works behind a proxy that puts it under a prefix."""
    paths = re.findall(r'ask\("([^"]*)"', client.get("/").text)
    assert paths
    assert not [path for path in paths if path.startswith("/")]


def test_its_data_needs_the_key(client):
    assert client.get("/recipe").status_code == 401
    assert client.get("/recipe", headers={"Authorization": "Bearer other"}).status_code == 401


def test_its_data_is_the_recipe_and_the_counters(client, models):
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": "embed", "input": ["one text", "another"]}
    assert client.post("/v1/embeddings", json=body, headers=headers).status_code == 200
    embed, classify = client.get("/recipe", headers=headers).json()["models"]
    assert embed["names"] == ["embed", "embed-2"]
    assert embed["recipe"]["pooling"] == "mean"
    assert embed["tasks"] == ["embed", "token_embed"]
    assert embed["dtype"] == "float32"
    assert embed["layout"]["replicas"] >= 1
    assert embed["stats"]["texts"] == 2
    assert embed["stats"]["compilations"] >= 1
    assert (embed["embeds"], embed["scores"]) == (True, True)
    assert (classify["embeds"], classify["scores"]) == (False, False)
    assert str(models[0].parent) not in str(embed), "where a model lies is the host's business"


# --- in a browser -------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium")
LACKING = [what for what, there in (("Debian's package chromium", CHROMIUM),
           ("pip install playwright", importlib.util.find_spec("playwright"))) if not there]  # fmt: skip
needs_browser = pytest.mark.skipif(
    bool(LACKING), reason=f"THE PAGE IS NOT TRIED IN A BROWSER HERE; needed: {', '.join(LACKING)}"
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page whose script may not fail, nor break its policy."""
    wrong = []
    page = browser.new_page()
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    page.on("dialog", lambda dialog: wrong.append(f"a text ran as a script: {dialog.message}"))
    yield page
    page.close()
    assert not wrong


@pytest.fixture(scope="module")
def address(models):
    with running(servings(*models), Settings(keys=[KEY], warm=False)) as url:
        yield url


@needs_browser
def test_with_a_key_texts_are_compared(page, address, models):
    page.goto(address)
    page.get_by_text("This server asks for an API key.").wait_for()
    page.get_by_label("API key").fill("other")
    page.get_by_role("button", name="Use the key").click()
    page.get_by_text("Unauthorized").wait_for()
    assert not page.get_by_role("heading", name="Recipe").is_visible()
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Recipe").wait_for()
    assert not page.get_by_label("API key").is_visible()
    assert "BertModel (bert)" in page.locator("#recipe").inner_text()

    texts = [MARKUP, "a stitch in time saves nine", "a stitch in time saves nine"]
    page.get_by_label("Texts, one a line").fill("\n".join(texts))
    page.get_by_role("button", name="Embed and compare").click()
    page.get_by_text("3 texts, 32 dimensions").wait_for()
    assert page.get_by_role("rowheader").all_inner_texts() == texts
    cells = page.locator("#matrix td").all_inner_texts()
    with LLM(models[0]) as llm:
        vectors = llm.embed_array(texts)
    np.testing.assert_allclose(np.reshape([float(x) for x in cells], (3, 3)), vectors @ vectors.T, atol=6e-5)
    shades = page.locator("#matrix td").evaluate_all("cells => cells.map(c => getComputedStyle(c).backgroundColor)")
    assert shades[0] == shades[4] == shades[5] != shades[1], "the same number, the same colour"


@needs_browser
def test_documents_are_ranked_and_counters_move(page, address):
    page.goto(address)
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    documents = ["seven small birds", MARKUP, "hello, my name is nobody"]
    page.get_by_label("Query").fill("hello, my name is nobody")
    page.get_by_label("Documents").fill("\n".join(documents))
    page.get_by_role("button", name="Rerank").click()
    page.get_by_text("3 documents").wait_for()
    ranked = page.locator("#ranking").get_by_role("rowheader").all_inner_texts()
    assert sorted(ranked) == sorted(documents)
    assert ranked[0] == documents[2]
    assert page.locator("#ranking td.number").first.inner_text() == "1.0000"
    batches = page.locator("#counters dt", has_text="batches").locator("xpath=following-sibling::dd[1]")
    assert page.wait_for_function("e => Number(e.textContent) > 0", arg=batches.element_handle())

    page.get_by_label("Query").fill("word " * 100_000)
    page.get_by_role("button", name="Rerank").click()
    page.get_by_text("3 documents").wait_for()  # cut, not refused

    page.get_by_label("Texts, one a line").fill("one line")
    page.get_by_role("button", name="Embed and compare").click()
    page.get_by_text("Error: two texts or more").wait_for()


@needs_browser
def test_another_model_is_chosen(page, address):
    page.goto(address)
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_label("Model").select_option("classify")
    page.locator("#recipe").get_by_text("BertForSequenceClassification").wait_for()
    assert not page.get_by_role("button", name="Embed and compare").is_visible()
    assert not page.get_by_role("button", name="Rerank").is_visible()


@needs_browser
def test_without_a_mouse_in_the_dark_on_a_phone(browser, models):
    with running(servings(models[0]), Settings(warm=False)) as url:
        page = browser.new_page(color_scheme="dark", viewport={"width": 360, "height": 640})
        page.goto(url)
        page.get_by_role("heading", name="Similarity").wait_for()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        unnamed = page.evaluate(
            "[...document.querySelectorAll('input, textarea, select')].filter(e => !e.labels.length).map(e => e.id)"
        )
        assert not unnamed
        assert not page.get_by_label("Model").is_visible(), "there is one model only"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "texts"
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_text("3 texts, 32 dimensions").wait_for()
        page.keyboard.press("Tab")  # the matrix can be scrolled by its keys
        assert page.evaluate("document.activeElement.id") == "matrix"
        page.close()
