"""The notebooks run from top to bottom, away from the repository, and are stored without outputs."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
LOOK_INSIDE = ROOT / "notebooks" / "look_inside.ipynb"


@pytest.fixture(scope="module")
def stored() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def source(notebook: nbformat.NotebookNode, name: str) -> str:
    return next(cell.source for cell in notebook.cells if cell.id == name)


def outputs(notebook: nbformat.NotebookNode, name: str) -> str:
    """All that a cell printed or showed, as text."""
    found = next(cell.outputs for cell in notebook.cells if cell.id == name)
    return json.dumps(found)


def execute(stored: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook with outputs, run in a folder."""
    kernel = folder / "jupyter" / "kernels" / "this"
    kernel.mkdir(parents=True)
    start = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    environment = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython")}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false", "XLA_FLAGS": ""}  # it trains for longer than it compiles
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": start, "display_name": "this", "language": "python", "env": environment})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
        client = nbclient.NotebookClient(
            nbformat.from_dict(stored), kernel_name="this", timeout=240, resources={"metadata": {"path": str(folder)}}
        )
        return client.execute()


@pytest.fixture(scope="module")
def executed(stored, tmp_path_factory):
    """(the notebook with outputs, the folder it ran in)."""
    folder = tmp_path_factory.mktemp("notebook")
    return execute(stored, folder), folder


@pytest.mark.parametrize("path", [NOTEBOOK, LOOK_INSIDE], ids=lambda path: path.stem)
def test_it_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert len(cell.source.splitlines()) <= 30
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_it_shows_what_it_promises(executed):
    notebook, folder = executed
    assert "(1, 18, 260) float32" in outputs(notebook, "model")
    assert "blocks.0.attention.branch.query.kernel" in outputs(notebook, "parameters")
    assert "820,864" in outputs(notebook, "parameters")
    assert "'model.norm.placement': ('pre', 'post')" in outputs(notebook, "train")
    for cell in ("curves", "attention"):
        assert "vega-lite" in outputs(notebook, cell)
    assert "def __init__(self" in outputs(notebook, "sample")

    from transformer.training.run_directory import read_rows, read_status

    runs = sorted((folder / "runs" / "quickstart").iterdir())
    assert [run.name.split("-")[0] for run in runs] == ["post", "pre"]
    for run in runs:
        assert read_status(run)["state"] == "done"
        losses = [row["loss"] for row in read_rows(run, "validation")]
        assert losses[-1] < losses[0]
        assert f"{losses[-1]:.10f}"[:10] in outputs(notebook, "curves")


def test_both_set_up_in_the_same_way(stored):
    assert source(stored, "setup") == source(nbformat.read(LOOK_INSIDE, as_version=4), "setup")


def test_a_look_inside_shows_what_it_promises(tmp_path):
    notebook = execute(nbformat.read(LOOK_INSIDE, as_version=4), tmp_path)
    for cell in ("maps", "lens", "heads", "patch"):
        assert "vega-lite" in outputs(notebook, cell)

    def rows(cell: str) -> list[dict]:
        output = next(o for c in notebook.cells if c.id == cell for o in c.outputs if o.output_type == "execute_result")
        return json.loads(re.search(r'"values": (\[.*?\])', output.data["text/html"]).group(1))

    answers = [row["right"] for row in rows("lens") if row["position"] >= 17 and row["read"] == "after block 1"]
    assert min(answers) > 0.9 > max(row["right"] for row in rows("lens") if row["read"] == "embedding")
    assert max(row["cost"] for row in rows("heads")) > 0.1
    moved = {(row["row"], row["column"]): row["value"] for row in rows("patch")}
    assert moved[0, 6] == pytest.approx(1, abs=1e-3) and moved[2, 17] == pytest.approx(1, abs=1e-3)
    assert abs(moved[0, 3]) < 0.5
    assert "True" in outputs(notebook, "cost")


def test_it_draws_without_altair(stored, monkeypatch):
    from rich.console import Console
    from rich.table import Table

    monkeypatch.setitem(sys.modules, "altair", None)
    scope = {"Table": Table}
    exec(source(stored, "plots"), scope)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(scope["curves"]([{"arm": "pre", "step": 20, "loss": 2.5}, {"arm": "post", "step": 20, "loss": 2.75}]))
    console.print(scope["heat_map"](np.array([[1.0, 0.0], [0.3, 0.7]]), "ab"))
    shown = console.export_text()
    for expected in ("2.500", "2.750", "@ ", "-#"):
        assert expected in shown


def test_it_finds_the_repository_around_it(stored):
    """Not installed, but opened in a clone: nothing is downloaded."""
    setup = source(stored, "setup")
    check = "import transformer; print(transformer.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{HIDE_INSTALLED}\n{setup}\n{check}"],
        cwd=NOTEBOOK.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / "transformer" / "__init__.py"


HIDE_INSTALLED = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path = [entry for entry in sys.path if not __import__("os").path.isdir(f"{entry}/transformer")]
"""


def test_the_installation_leaves_jax_alone(stored, tmp_path):
    """In an environment without the library: it is cloned, and installed with the JAX that is there pinned."""
    from importlib.metadata import version

    fake = "import subprocess\nsubprocess.run = lambda command, check: print(command)\n"
    setup = source(stored, "setup")
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{HIDE_INSTALLED}\n{fake}\n{setup}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    clone, install = done.stdout.splitlines()
    assert "'git', 'clone'" in clone
    assert f"'jax=={version('jax')}', 'jaxlib=={version('jaxlib')}'" in install
    assert "'--upgrade'" not in install
