"""docs/server.md, docs/grafana.json and README.md's curl lines say what the server does."""

import argparse
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from jaxpool import LLM
from jaxpool.server import flags
from jaxpool.server.app import Settings, make_app
from jaxpool.server.errors import KINDS
from jaxpool.server.limits import Limits
from jaxpool.server.serving import Serving
from jaxpool.vllm_arguments import ARGUMENTS, NOTHING
from tests.servers import running
from tests.tiny import tiny_bert

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVE = README.split("\n## Serve\n")[1].split("\n## ")[0]
CURLS = re.findall(r"^curl .*?(?<!\\)$", SERVE.replace("\\\n", ""), re.MULTILINE)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    llm = LLM(tiny_bert(tmp_path_factory.mktemp("model") / "tiny"))
    with running([Serving(llm, ("minilm",), Limits())]) as url:
        yield url


@pytest.fixture(scope="module")
def metrics(address):
    """/metrics after a request: (families, names of all series)."""
    assert httpx.post(f"{address}/v1/embeddings", json={"input": "one text"}, timeout=60).status_code == 200
    text = httpx.get(f"{address}/metrics").text
    families = set(re.findall(r"^# TYPE (jaxpool_\w+)", text, re.MULTILINE))
    return {f for f in families if not f.endswith("_created")}, set(re.findall(r"^(jaxpool_\w+)\{", text, re.MULTILINE))


def test_every_metric_is_documented(metrics):
    families, _ = metrics
    assert set(re.findall(r"`(jaxpool_\w+)`", DOCS)) == families


def test_the_dashboard_asks_for_metrics_that_there_are(metrics):
    families, series = metrics
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    asked += [variable["query"] for variable in DASHBOARD["templating"]["list"]]
    names = {name for expression in asked for name in re.findall(r"jaxpool_\w+", expression)}
    assert names <= series
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in names}
    assert shown == families, "every metric is worth a look"


def test_the_dashboard_is_one():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another"
        taken |= cells
        for target in panel["targets"]:
            expression = target["expr"]
            assert expression.count("(") == expression.count(")")
            assert expression.count('{model=~"$model"}') == len(re.findall(r"jaxpool_\w+", expression))
    assert max(x for x, _ in taken) == 23


def test_every_endpoint_is_documented(tmp_path):
    app = make_app([], Settings(warm=False))
    table = DOCS.split("## Endpoints")[1].split("\n## ")[0]
    assert set(re.findall(r"`(/[\w/.{}]*)`", table)) == {*app.openapi()["paths"], "/openapi.json"}


def test_every_flag_is_documented():
    parser = argparse.ArgumentParser(add_help=False)
    flags.add_arguments(parser)
    there = {"--log-level", *(action.option_strings[0] for action in parser._actions)}
    table, *lists = re.split(r"\n\| flag \||\n### |Refused unless|`--tokenizer-mode`", DOCS.split("\n## Flags")[1])[1:]
    in_table, passed, refused = (set(re.findall(r"`(--[a-z][\w-]+)", part)) for part in (table, *lists[:2]))
    assert passed == {flags.dashed(name) for name, own in ARGUMENTS.items() if own.may_be is None} - in_table
    assert refused == {flags.dashed(name) for name, own in ARGUMENTS.items() if own.may_be is NOTHING}
    choices = {flags.dashed(name) for name, own in ARGUMENTS.items() if own.may_be not in (None, NOTHING)}
    assert in_table == there - passed - refused - choices
    assert all(f"`{name}`" in DOCS for name in choices)


def test_documented_statuses_are_the_servers():
    table = DOCS.split("## Errors")[1].split("\n## ")[0]
    assert {int(status) for status in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} <= set(KINDS)


@pytest.mark.skipif(shutil.which("curl") is None, reason="README.md's curl lines are not run: there is no curl")
@pytest.mark.parametrize("line", CURLS, ids=lambda line: line.split()[1].rsplit(":8000")[-1])
def test_readmes_curl_lines(address, line):
    arguments = shlex.split(line.replace("http://127.0.0.1:8000", address))
    done = subprocess.run([*arguments, "--fail-with-body", "-sS"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if "/metrics" in line:
        assert "jaxpool_up" in done.stdout
    else:
        found = json.loads(done.stdout)
        assert found["model"] == "minilm"
        assert len(found.get("data") or found["results"]) == (1 if "top_n" in line else 2)


def test_readme_has_them():
    assert len(CURLS) == 4


@pytest.fixture(scope="module")
def matryoshka(tmp_path_factory):
    """The address of a model whose vectors, of 64 entries, may be cut."""
    directory = tiny_bert(tmp_path_factory.mktemp("matryoshka") / "tiny", hidden=64)
    with running([Serving(LLM(directory, hf_overrides={"is_matryoshka": True}), ("minilm",), Limits())]) as url:
        yield url


@pytest.mark.skipif(shutil.which("curl") is None, reason="docs/server.md's curl line is not run: there is no curl")
@pytest.mark.parametrize("model", ["address", "matryoshka"])
def test_the_line_for_smaller_vectors(request, model):
    (line,) = re.findall(r"^curl .*?(?<!\\)$", DOCS.replace("\\\n", ""), re.MULTILINE)
    arguments = shlex.split(line.replace("http://127.0.0.1:8000", request.getfixturevalue(model)))
    done = subprocess.run([*arguments, "-sS", "-w", "\n%{http_code}"], capture_output=True, text=True, check=True)
    said, _, status = done.stdout.rpartition("\n")
    found = json.loads(said)
    if model == "address":
        assert (status, found["error"]["type"], found["code"]) == ("400", "BadRequestError", 400)
        assert re.search("… (.*) …", DOCS).group(1) in found["error"]["message"]
        return
    (item,) = found["data"]
    assert (status, item["object"], item["index"], len(item["embedding"])) == ("200", "embedding", 0, 32)
    assert sum(x * x for x in item["embedding"]) == pytest.approx(1, abs=1e-5)
    assert found["usage"]["total_tokens"] > 2
