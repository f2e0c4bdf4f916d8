"""The clients of examples/online, each against a server with a small model, held to the offline class's numbers."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxpool import LLM, PoolingParams
from jaxpool.server.limits import Limits
from jaxpool.server.serving import Serving
from tests.servers import running
from tests.tiny import tiny_bert, tiny_classifier, tiny_clip

pytest.importorskip("openai", reason="needs OpenAI's client: pip install 'jaxpool[test]'")
EXAMPLES = Path(__file__).parent.parent / "examples" / "online"
MATRYOSHKA = {"is_matryoshka": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> directory, arguments of `LLM`."""
    root = tmp_path_factory.mktemp("models")
    return {
        "embed": (tiny_bert(root / "embed"), {"hf_overrides": MATRYOSHKA}),
        "classify": (tiny_classifier(root / "classify", labels=3), {}),
        "score": (tiny_classifier(root / "score", labels=1), {}),
        "see": (tiny_clip(root / "see"), {}),
    }


@pytest.fixture(scope="module")
def address(models):
    servings = [Serving(LLM(path, **more), (name,), Limits()) for name, (path, more) in models.items()]
    with running(servings) as url:
        yield url


@pytest.fixture
def run(monkeypatch, capsys, address):
    """(name of the example, arguments) -> its globals, what it printed."""

    def example(name, *arguments):
        host, port = address.removeprefix("http://").split(":")
        monkeypatch.setattr("sys.argv", [name, "--host", host, "--port", port, *map(str, arguments)])
        values = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return values, capsys.readouterr().out

    return example


@pytest.fixture(scope="module")
def offline(models):
    """name of a model -> `LLM`."""
    made = {}

    def load(name):
        path, more = models[name]
        if name not in made:
            made[name] = LLM(path, **more)
        return made[name]

    yield load
    for llm in made.values():
        llm.close()


def numbers(label, text):
    found = re.findall(rf"^{label}: \[(.*?)(?:, \.\.\.)?\]", text, re.MULTILINE)
    return [[float(x) for x in line.split(", ")] for line in found]


def test_embedding(run, offline):
    values, text = run("embedding")
    vectors = offline("embed").embed_array(values["TEXTS"])
    np.testing.assert_allclose(numbers("Embedding", text), vectors[:, :8], atol=6e-5)
    assert text.count("(size=32)") == 4


def test_matryoshka(run, offline):
    values, text = run("matryoshka", "--dimensions", 8)
    llm = offline("embed")
    outputs = [llm.embed(values["TEXT"], pooling_params=PoolingParams(dimensions=d), use_tqdm=False) for d in (None, 8)]
    expected = [output.outputs.embedding[:4] for (output,) in outputs]
    np.testing.assert_allclose(numbers("Embedding", text), expected, atol=6e-5)
    assert re.findall(r"Dimensions: (\d+)  length: (.*)", text) == [("32", "1.0000"), ("8", "1.0000")]


def test_classification(run, offline):
    values, text = run("classification", "--model", "classify")
    probs = [output.outputs.probs for output in offline("classify").classify(list(values["TEXTS"]), use_tqdm=False)]
    np.testing.assert_allclose(numbers("Class probabilities", text), probs, atol=6e-5)
    assert re.findall(r"Class: LABEL_(\d)", text) == [str(np.argmax(p)) for p in probs]


def test_score(run, offline):
    values, text = run("score", "--model", "score")
    questions, answers = list(values["QUESTIONS"]), list(values["ANSWERS"])
    llm = offline("score")
    sides = ((questions[0], answers[0]), (questions[0], answers), (questions, answers))
    expected = [[output.outputs.score for output in llm.score(*pair, use_tqdm=False)] for pair in sides]
    for found, scores in zip(numbers("Scores", text), expected, strict=True):
        np.testing.assert_allclose(found, scores, atol=6e-5)


def test_rerank(run, offline):
    values, text = run("rerank", "--model", "score", "--top-n", 2)
    ranking = re.findall(r"^\d\. (\S+)  \[(\d)\] (.*)", text, re.MULTILINE)
    expected = offline("score").rerank(values["QUERY"], values["DOCUMENTS"], top_n=2)
    assert [int(index) for _, index, _ in ranking] == [index for index, _ in expected]
    np.testing.assert_allclose([float(score) for score, _, _ in ranking], [score for _, score in expected], atol=6e-5)
    assert [document for *_, document in ranking] == [values["DOCUMENTS"][index] for index, _ in expected]


@pytest.mark.parametrize(("model", "task", "width"), [("embed", "token_embed", 32), ("classify", "token_classify", 3)])
def test_pooling(run, offline, model, task, width):
    values, text = run("pooling", "--model", model, "--task", task)
    tokenizer = offline(model).engine.tokenizer
    lengths = [len(encoded.ids) for encoded in tokenizer.encode(list(values["TEXTS"]), 64)]
    assert re.findall(r"Shape: (\[.*\])  largest difference: 0.0e\+00", text) == [f"[{n}, {width}]" for n in lengths]


def test_all_of_them_are_run():
    tested = set(re.findall(r'run\("(\w+)"', Path(__file__).read_text(encoding="utf-8")))
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_pictures(run, offline, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), np.uint8)
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, values in zip(files, pixels, strict=True):
        Image.fromarray(values).save(file)
    _, text = run("images", *files, "--text", "hello", "--model", "see")
    hello, *seen = offline("see").embed_array(["hello", *(Image.open(file) for file in files)])
    printed = [float(line.split()[0]) for line in text.splitlines()]
    np.testing.assert_allclose(printed, [vector @ hello for vector in seen], atol=6e-5)
