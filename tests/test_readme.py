"""README.md: its table of architectures is the families' own, and its snippets name what there is."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxpool
from jaxpool.models import families

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools" / "support-table"
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CALLABLE = {name: getattr(jaxpool, name) for name in ("LLM", "PoolerConfig", "PoolingParams", "load", "register")}


def run(tool, *arguments):
    return subprocess.run([sys.executable, str(tool), *arguments], capture_output=True, text=True, check=False)


def test_the_table_is_up_to_date():
    done = run(TOOL, "--check")
    assert done.returncode == 0, done.stderr
    table = README.split("<!-- support table: begin -->")[1].split("<!-- support table: end -->")[0]
    for family in families():
        (row,) = re.findall(rf"^\| {family.name} \|.*", table, re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", row)) == set(family.all_architectures)
        assert not row.endswith("| – |"), f"tools/support-table: {family.name} has no checkpoint that people know"


def test_a_table_that_is_not_is_found_and_mended(tmp_path):
    tool = tmp_path / "tools" / "support-table"
    tool.parent.mkdir()
    tool.write_text(TOOL.read_text())
    stale = tmp_path / "README.md"
    stale.write_text(README.replace("| `BertModel`", "| `BartModel`"))
    done = run(tool, "--check")
    assert done.returncode == 1
    assert "out of date" in done.stderr
    assert run(tool).returncode == 0
    assert stale.read_text() == README


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.split("\n")[0][:40])
def test_snippets_call_what_there_is(snippet):
    for call in (node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call)):
        source = ast.unparse(call.func)
        function = CALLABLE.get(source.removeprefix("jaxpool."))
        if source.startswith("llm."):
            function = getattr(jaxpool.LLM, source.removeprefix("llm."))
        if function is not None:
            assert {keyword.arg for keyword in call.keywords} <= set(inspect.signature(function).parameters), source


def test_every_example_is_run():
    tested = set(re.findall(r'run\("(\w+)"', (ROOT / "tests" / "test_examples.py").read_text()))
    elsewhere = {"demo", "ray_embed", "tiny_clip"}  # `make demo`, tests/test_ray.py, a notebook
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == tested | elsewhere
