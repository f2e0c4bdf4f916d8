"""The notebooks: as committed they show their results, and run again from a fresh kernel they give the same ones."""

import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
# name -> how many pictures it shows, and how large its file may be
NOTEBOOKS = {"quickstart": (1, 60_000), "image_search": (2, 120_000)}
RUN = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False).execute()
nbformat.validate(notebook)
nbformat.write(notebook, sys.argv[2])
"""

pytestmark = pytest.mark.once


def outputs(file):
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


def pictures(file):
    return [b64decode(o["data"]["image/png"]) for o in outputs(file) if "image/png" in o.get("data", {})]


def printed(file):
    """Of the whole notebook: what is printed at about the same time may come in one piece or in two."""
    return "".join("".join(output["text"]) for output in outputs(file) if output["output_type"] == "stream")


@pytest.fixture(params=NOTEBOOKS)
def notebook(request):
    return EXAMPLES / f"{request.param}.ipynb"


def test_it_is_committed_with_its_results(notebook):
    count, size = NOTEBOOKS[notebook.stem]
    assert len(pictures(notebook)) == count
    assert notebook.stat().st_size < size
    assert not [o for o in outputs(notebook) if o["output_type"] == "error" or o.get("name") == "stderr"]
    text = notebook.read_text(encoding="utf-8")
    assert not re.search(r'/(home|root|tmp|usr|work|Users)/|File "', text)


def test_it_runs(notebook, tmp_path):
    for name in ("nbclient", "nbformat", "ipykernel", "matplotlib"):
        pytest.importorskip(name)
    # The kernel is this very interpreter, whatever kernels the user has; nothing is written outside `tmp_path`.
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
    folders = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")
    env = os.environ | dict.fromkeys(folders, str(tmp_path)) | {"HF_HUB_OFFLINE": "1"}
    env |= {"EXAMPLES": str(EXAMPLES), "PYTHONDONTWRITEBYTECODE": "1"}
    before = sorted(EXAMPLES.rglob("*"))
    done = tmp_path / "done.ipynb"
    arguments = [sys.executable, "-c", RUN, str(notebook), str(done)]
    run = subprocess.run(arguments, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    count, size = NOTEBOOKS[notebook.stem]
    shown = pictures(done)
    assert len(shown) == count
    assert all(picture.startswith(b"\x89PNG") for picture in shown)
    assert sum(map(len, shown)) < size
    words = [re.sub(r"-?\d+\.\d+", "x", printed(file)) for file in (done, notebook)]
    assert words[0] == words[1]
    assert sorted(EXAMPLES.rglob("*")) == before
