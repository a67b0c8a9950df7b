"""What README.md, CONTRIBUTING.md and the configs' docstrings show is true and runs.

Commands are found by reading the documents and are executed in a folder that looks like a clone, in the order in which
they are shown; what would take long is shortened by further overrides. A new command runs without being listed here.
One that cannot run in a test is listed in NOT_RUN with the reason, or this test fails.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from transformer.config import resolve, schema

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
PROGRAMS = ("python", "make", "pip", "git", "sh", "source", "wandb")

SHORT = {
    "train.steps": 3,
    "train.batch_size": 2,
    "optimizer.warmup_steps": 1,
    "data.sequence_length": 16,
    "model.d_model": 16,
    "model.num_layers": 1,
    "model.attention.num_heads": 2,
    "eval.tokens": 1024,
    "eval.batch_size": 512,
    "eval.final": False,
    "decode.max_new_tokens": 8,
    "wandb.mode": "disabled",
}
OVERRIDES = [f"--config.{field}={value}" for field, value in SHORT.items()]

# Command -> why it is not run. `make` shows its recipe instead, train.py its config.
NOT_RUN = {
    "python -m benchmarks.norm": "takes minutes; tests/benchmarks/test_speed_scripts.py runs it",
    "python -m ablations report": "writes into the repository; tests/ablations/test_committed.py runs it",
    "python -m ablations keep causal_mask": "needs a finished run; tests/ablations/test_committed.py runs it",
    "python -m ablations twins causal_mask": "needs a finished run; tests/ablations/test_twins.py runs it",
    "make install": "needs the network",
    "make lint": "runs beside the tests in .ci/run, and takes as long as all tests of this file",
    "make test": "this is one of its tests",
    "source .venv/bin/activate": "belongs to an interactive shell",
    "python train.py --config=configs/gpt2.py:gpt2_124m": "wants an accelerator",
    "python train.py --config=configs/llama.py:llama2_7b": "wants many accelerators",
    "python train.py --config=configs/bert.py:bert_base": "wants an accelerator",
    "python train.py --config=configs/t5.py:t5_base": "wants an accelerator",
    "python train.py --config=configs/vaswani2017.py:transformer_base": "wants an accelerator",
    "python train.py --config=configs/translation.py:fra-eng.zip": "needs Tatoeba's pairs",
    "python train.py --config=configs/translation.py:fra-eng.zip --config.model.cross_attention=none": "needs pairs",
    "python eval.py --workdir=RUN --checks=loss,translate": "needs the run of the line above it",
    "python train.py --config=configs/mlm.py:wikitext2": "needs WikiText-2",
    "python train.py --config=configs/intent.py:clinc_oos.zip --config.train.init_from=MLM_RUN": "needs CLINC, a run",
    "python train.py --config=configs/intent.py:clinc_oos.zip": "needs CLINC",
    "python train.py --config=configs/shakespeare_char.py": "needs the network, for TFDS",
    "python train.py --config=configs/shakespeare_char_cpu.py": "needs the network, for TFDS",
}


# --- Reading the documents -------------------------------------------------------------------------------------


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block, also of indented ones."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [(language, re.sub(rf"^{indent}", "", content, flags=re.MULTILINE)) for indent, language, content in found]


def spans(text: str) -> list[str]:
    """Every piece of inline code, outside fenced blocks."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def command_of(line: str) -> str:
    """The line without its comment."""
    return line.split(" #")[0].strip()


def is_command(text: str) -> bool:
    return text.split(" ")[0] in PROGRAMS and " " in text


def command_blocks(text: str) -> list[list[str]]:
    """The fenced blocks that hold commands."""
    plain = [content for language, content in blocks(text) if language in ("", "sh", "bash", "console")]
    lines = [[command_of(line) for line in content.splitlines() if command_of(line)] for content in plain]
    return [block for block in lines if any(map(is_command, block))]


def commands(text: str) -> list[str]:
    """All commands of a document, in order, each once."""
    in_order: dict[int, str] = {}
    for command in [*(c for block in command_blocks(text) for c in block), *filter(is_command, spans(text))]:
        in_order.setdefault(text.index(command), command)
    return list(dict.fromkeys(command for _, command in sorted(in_order.items())))


def docstring_commands(config: Path) -> list[str]:
    docstring = ast.get_docstring(ast.parse(config.read_text(encoding="utf-8"))) or ""
    lines = (command_of(line) for line in docstring.splitlines())
    return [line for line in lines if is_command(line)]


# --- Running what they show ------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder with the files of the repository and the user's own texts that the documents mention."""
    for name in ("train.py", "eval.py", "Makefile", "configs", "requirements", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    for text in ("input.txt", "books/one.txt", "books/two.txt"):
        (tmp_path / text).parent.mkdir(exist_ok=True)
        (tmp_path / text).write_text("Alice was beginning to get very tired of sitting by her sister. " * 40)
    (tmp_path / "installed").touch()
    return tmp_path


def shortened(command: str) -> list[str]:
    """What is executed for a command."""
    words = shlex.split(command)
    python = [sys.executable]
    if command in NOT_RUN:
        if words[0] == "make":
            return [*words, "--dry-run"]
        return [*python, *words[1:], "--print_config"] if words[:2] == ["python", "train.py"] else ["true"]
    if words[0] == "make":
        return [*words, f"PY={sys.executable}", "INSTALLED=installed", "ARGS=--profile=smoke"]
    if words[:2] == ["python", "train.py"]:
        return [*python, *words[1:], *([] if "--help" in words else OVERRIDES)]
    if words[:2] == ["python", "eval.py"]:
        return [*python, *words[1:]]
    if words[:4] == ["python", "-m", "ablations", "run"]:  # trains for minutes: shows what it would train instead
        return [*python, "-m", "ablations", "plan", *words[4:]]
    if words[:4] == ["python", "-m", "ablations", "try"]:
        return [*python, *words[1:], "--profile=smoke"]
    if words[:3] in (["python", "-m", "ablations"], ["python", "-m", "transformer.analysis.accounting"]):
        return [*python, *words[1:]]
    if words[:3] == ["python", "-m", "transformer.data.ngram"]:  # counts the megabytes of `stdlib` for half a minute
        return [*python, *words[1:], "--config.data.source=text", "--config.data.path=input.txt"]
    raise AssertionError(f"a document shows {command!r}: teach this test to run it, or list it in NOT_RUN")


def execute(command: str, folder: Path) -> str:
    """Runs a command, shortened, and returns what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline" if " push " in command else "disabled",
    }
    done = subprocess.run(
        shortened(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=600, errors="replace"
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(1800)  # some twenty commands, each a process of its own
def test_readme_runs_from_top_to_bottom(clone, monkeypatch):
    shown = commands(README)
    assert shown[0] == "make demo" and "make test" in shown
    for command in shown:
        printed = execute(command, clone)
        if command.startswith("python train.py") and "--help" not in command:
            workdir = re.search(r"^run directory: (.+)$", printed, re.MULTILINE)
            assert workdir and (clone / workdir[1] / "status.json").is_file()
    check_run_directory(clone / "runs" / "first")

    monkeypatch.chdir(clone)
    scope: dict = {}
    exec(next(content for language, content in blocks(README) if language == "python"), scope)
    assert scope["logits"].shape == (1, len("import "), 260)


def check_run_directory(workdir: Path) -> None:
    """The table of files is complete and true."""
    table = README.split("## What a run leaves behind")[1].split("\n## ")[0]
    listed = {name.rstrip("/") for row in re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE) for name in spans(row)}
    internal = {"lock", "vocabulary.json"}
    assert listed == {path.name for path in workdir.iterdir()} - internal


def test_only_one_python_block_in_readme():
    """The test above runs the first."""
    assert [language for language, _ in blocks(README)].count("python") == 1


def test_contributing_runs(clone):
    for command in commands(CONTRIBUTING):
        execute(command, clone)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_docstrings_of_configs_run(config, clone):
    """Every config shows how to run it."""
    shown = docstring_commands(config)
    name = config.stem.removeprefix("ablation_")
    assert any(f"configs/{config.name}" in c or re.search(rf"ablations run {name}\b", c) for c in shown)
    for command in shown:
        if command not in commands(README):
            execute(command, clone)


def test_the_reasons_are_about_commands_that_are_shown():
    shown = {*commands(README), *commands(CONTRIBUTING), *(c for config in CONFIGS for c in docstring_commands(config))}
    assert set(NOT_RUN) <= shown


@pytest.mark.parametrize("flags", [span for span in spans(README + CONTRIBUTING) if span.startswith("--config.")])
def test_flags_in_the_text_exist(flags, clone):
    printed = execute_flags(shlex.split(flags), clone)
    for flag in shlex.split(flags):
        field, value = flag.removeprefix("--config.").split("=")
        assert f"{field} = {value!r}" in printed


def execute_flags(flags: list[str], folder: Path) -> str:
    command = [sys.executable, "train.py", "--config=configs/base.py", *flags, "--print_config"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True).stdout


def test_a_variant_is_added_as_contributing_says():
    (example,) = (content for language, content in blocks(CONTRIBUTING) if language == "python")
    prelude = (
        "import dataclasses\n"
        "import jax.numpy as jnp\n"
        "from transformer import resolve\n"
        "from transformer.model.normalization import NORMS, Affine\n"
        "from transformer.schema import field\n"
        "resolve({})  # a variant may come at any time, as in a notebook\n"
    )
    check = (
        'config = resolve({"model": {"norm": {"kind": "lpnorm", "lp_power": 4.0}, "d_model": 8}})\n'
        "assert config.model.norm.lp_power == 4.0\n"
        'stack = {"family": "encoder_decoder", "encoder": {"norm": {"kind": "lpnorm", "lp_power": 1.0}}}\n'
        'assert dict(resolve({"model": stack}).model.options)["encoder.norm.lp_power"] == 1.0\n'
        "y = PowerNorm(config.model.norm, 2).normalize(jnp.array([3.0, -4.0]), None)\n"
        "assert jnp.allclose(y, jnp.array([3.0, -4.0]) / ((81 + 256) / 2) ** 0.25, atol=1e-4)\n"
    )
    code = "\n".join((prelude, example, check))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# --- What they name exists -------------------------------------------------------------------------------------


def test_every_block_is_commands_python_or_a_list_of_files():
    for text in (README, CONTRIBUTING):
        known = command_blocks(text)
        for language, content in blocks(text):
            lines = [command_of(line) for line in content.splitlines() if command_of(line)]
            if language == "python" or lines in known:
                continue
            for line in lines:
                for name in re.split(r"\s{2,}", line)[0].split(", "):
                    assert (ROOT / name).exists(), f"{name!r} is neither a command nor a file"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_links_and_paths_lead_to_files(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    rooms = ("transformer/", "configs/", "ablations/", "notebooks/", "benchmarks/", "tests/", "requirements/")
    paths = [span for span in spans(text) if span.startswith(rooms) and "NAME" not in span and " " not in span]
    assert links or paths
    for path in [*links, *paths]:
        assert (ROOT / path).exists(), path


def table_rows() -> Iterator[tuple[str, list[str]]]:
    """(field, the names in the cell beside it) of README's table of settings."""
    table = README.split("| field |")[1].split("\n\n")[0]
    for field, cell in re.findall(r"^\| `([\w.]+)` \| (.+) \|$", table, re.MULTILINE):
        yield field, spans(cell)


def test_the_table_of_settings_is_true():
    known = {info.path: info for info in schema()}
    rows = dict(table_rows())
    assert len(rows) >= 5
    for field, names in rows.items():
        assert field in known
        fields = [name for name in names if "." in name and not re.fullmatch(r"[\d.]+", name)]
        assert set(fields) <= set(known)
        values = [name for name in names if name not in fields]
        if known[field].kinds:
            assert set(values) <= set(known[field].kinds), f"{field}: README names what the registry does not have"
        for value in () if known[field].kinds else values:
            *parents, leaf = field.split(".")
            nested = {leaf: float(value)}
            for parent in reversed(parents):
                nested = {parent: nested}
            resolve(nested)


# --- This test can fail ----------------------------------------------------------------------------------------


def test_a_command_that_nobody_can_run_is_noticed():
    text = README.replace("python eval.py --workdir", "python evaluate.py --workdir")
    with pytest.raises(AssertionError, match=r"evaluate\.py"):
        for command in commands(text):
            shortened(command)


def test_commands_are_found_where_they_are_shown():
    block = "```\npython a.py   # one\npython b.py\n```"
    text = f"Run `make x` or\n\n{block}\n\n   ```sh\n   git c\n   ```\nand `d.py`, `make`."
    assert commands(text) == ["make x", "python a.py", "python b.py", "git c"]
