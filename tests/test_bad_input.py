"""What a user can get wrong is answered in a sentence that names it, with exit code 2 and no traceback."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "--config.train.steps=8",
    "--config.train.batch_size=2",
    "--config.train.checkpoint_every=4",
    "--config.data.sequence_length=16",
    "--config.model.d_model=16",
    "--config.model.num_layers=1",
    "--config.eval.final=False",
    "--config.eval.tokens=64",
    "--config.wandb.mode=disabled",
)


def run(script: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def check_refused(done: subprocess.CompletedProcess, *said: str) -> None:
    """Exit code 2, and at most three lines that begin with "error:" and hold every one of `said`."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 3, done.stderr
    assert lines[0].startswith("error: "), done.stderr
    for text in said:
        assert text in done.stderr


# --- Configs: refused before anything is loaded or written ------------------------------------------------------


CONFIGS = {
    "no config": ((), "--config=FILE is required"),
    "missing file": (
        ("--config=configs/bsae.py",),
        "configs/bsae.py does not exist",
        'Did you mean "configs/base.py"?',
    ),
    "missing folder": (("--config=nowhere/x.py",), "nowhere/x.py does not exist", "such as configs/base.py"),
    "not a config": (("--config=README.md",), "README.md", "could not be loaded"),
    "no arms": (("--config=configs/base.py:post",), "configs/base.py:post", "no arms"),
    "unknown arm": (("--config=configs/ablation_prenorm.py:prost",), "'prost'", 'Did you mean "post"?'),
    "unknown flag": (("--config=configs/base.py", "--wrkdir=x"), "--wrkdir", "Did you mean --workdir?"),
    "field before config": (("--config.seed=1",), "--config.seed", "needs --config=FILE"),
}
FIELDS = {
    "unknown field": (("model.d_modle=64",), 'no config field "model.d_modle"', 'Did you mean "model.d_model"?'),
    "unknown kind": (("model.norm.kind=batch",), "model.norm.kind='batch'", "layernorm, rmsnorm"),
    "text for a number": (("model.d_model=wide",), "model.d_model='wide'", "takes int (default 128)"),
    "fraction for a whole number": (("train.steps=1.5",), "train.steps='1.5'", "takes int"),
    "text for a truth value": (("tensorboard=maybe",), "tensorboard='maybe'", "takes bool"),
    "text for a gain": (("model.residual.attention.skip_gain=big",), "model.residual.attention.skip_gain", "big"),
    "heads do not divide the width": (
        ("model.d_model=100", "model.attention.num_heads=3"),
        "model.d_model=100 is not divisible by model.attention.num_heads=3",
        "model.attention.head_dim",
    ),
    "odd heads cannot be rotated": (("model.attention.head_dim=5",), "model.position.kind=rope", "5 is odd"),
    "a field nobody reads": (
        ("data.path=a.txt",),
        "data.path='a.txt' has no effect",
        "data.source=labelled or pairs or text",
    ),
    "a source without its path": (("data.source=text",), "data.source=text", "data.path"),
    "too few positions": (
        ("model.position.kind=learned", "model.position.max_length=5"),
        "model.position.max_length=5",
        "data.sequence_length=256",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_command_lines(case, tmp_path):
    arguments, *said = CONFIGS[case]
    check_refused(run("train.py", *arguments, f"--workdir={tmp_path / 'run'}"), *said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", FIELDS)
def test_fields(case, tmp_path):
    fields, *said = FIELDS[case]
    overrides = [f"--config.{field}" for field in fields]
    done = run("train.py", "--config=configs/base.py", *overrides, f"--workdir={tmp_path / 'run'}")
    check_refused(done, *said)
    assert not (tmp_path / "run").exists()


# --- Data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "matches no file"),
        (b"", "holds no text"),
        (b"too little to train on", "is too small"),
    ],
    ids=["missing", "empty", "tiny"],
)
def test_files(tmp_path, content, said):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    text = ("--config.data.source=text", f"--config.data.path={path}")
    check_refused(run("train.py", "--config=configs/base.py", *text, f"--workdir={tmp_path / 'run'}"), str(path), said)


def test_tfds_without_network(tmp_path):
    """Not prepared and out of reach: told within ten seconds, and no other corpus is used instead."""
    nowhere = "http://127.0.0.1:9"  # a proxy that nobody runs
    tfds = ("--config.data.source=tfds", "--config.data.tfds_name=tiny_shakespeare", "--quiet")
    started = time.monotonic()
    done = run(
        "train.py",
        "--config=configs/base.py",
        *tfds,
        f"--config.data.tfds_dir={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
        **{name: nowhere for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")},
        no_proxy="",
        NO_PROXY="",
    )
    assert time.monotonic() - started < 10 * slowness()
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) <= 3, done.stderr
    assert re.match(r"error: data\.tfds_name=tiny_shakespeare is not in .* out of reach", lines[-1])
    assert str(tmp_path / "data") in lines[-1] and "data.source=stdlib" in lines[-1]
    assert not (tmp_path / "data").exists()


def slowness() -> float:
    """How much longer things take while more processes than cores want to run."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


# --- Run directories -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("trained") / "run"
    done = run("train.py", "--config=configs/base.py", *TINY, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_workdir_of_another_config(trained):
    done = run("train.py", "--config=configs/base.py", *TINY, "--config.seed=1", f"--workdir={trained}")
    check_refused(done, str(trained), "holds a run of another config", "seed: 0 -> 1", "another --workdir")


def test_a_workdir_in_use(trained):
    with open(trained / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("train.py", "--config=configs/base.py", *TINY, f"--workdir={trained}")
    check_refused(done, str(trained), "is in use", "another --workdir")


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        done = run("train.py", "--config=configs/base.py", *TINY, f"--workdir={workdir}")
        check_refused(done, str(workdir), "another --workdir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_workdir_that_cannot_be_read(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    workdir.chmod(0)
    try:
        done = run("train.py", "--config=configs/base.py", *TINY, f"--workdir={workdir}")
        check_refused(done, str(workdir), "cannot be read and written", "permissions")
    finally:
        workdir.chmod(0o755)


def test_a_workdir_with_unreadable_files(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    (workdir / "config.json").write_text("{")
    check_refused(run("train.py", "--config=configs/base.py", *TINY, f"--workdir={workdir}"), "config.json")
    check_refused(run("eval.py", f"--workdir={workdir}"), "config.json", "is not JSON")


EVALUATIONS = {
    "no workdir": ((), "--workdir=DIR is required"),
    "no run": (("--workdir={tmp_path}",), "holds no run", "--workdir"),
    "unknown check": (("--workdir={trained}", "--checks=loss,genrate"), "'genrate'", 'Did you mean "generate"?'),
    "unknown split": (("--workdir={trained}", "--split=test"), "--split='test'", "train, validation"),
    "unknown checkpoint": (("--workdir={trained}", "--checkpoint=first"), "--checkpoint=first", "last|best"),
}


@pytest.mark.parametrize("case", EVALUATIONS)
def test_evaluations(case, trained, tmp_path):
    arguments, *said = EVALUATIONS[case]
    check_refused(run("eval.py", *(a.format(trained=trained, tmp_path=tmp_path) for a in arguments)), *said)


def test_no_intact_checkpoint(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    check_refused(run("eval.py", f"--workdir={workdir}"), str(workdir), "no checkpoint")


# --- A full disk -----------------------------------------------------------------------------------------------

# In a mount namespace of its own, so that nothing stays mounted whatever happens. The first checkpoint fits, the
# second does not; then there is room again.
FULL_DISK = """
mount -t tmpfs -o size=4m none "$1" || exit 77
shift
"$@"; echo "first: $?"
ls "$DISK/run/checkpoints"
mount -o remount,size=64m "$DISK" || exit 77
"$@" --config.train.log_every=1; echo "second: $?"
cat "$DISK/run/status.json"
"""


def test_a_full_disk_while_checkpointing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    train = [sys.executable, "train.py", "--config=configs/base.py", *TINY, "--config.model.d_model=128"]
    try:
        done = subprocess.run(
            [*namespace, "sh", "-c", FULL_DISK, "sh", str(disk), *train, f"--workdir={disk}/run", "--quiet"],
            cwd=ROOT,
            env={**os.environ, "DISK": str(disk)},
            capture_output=True,
            text=True,
            timeout=120,
        )
    except FileNotFoundError:
        pytest.skip("needs the command unshare")
    if "first:" not in done.stdout:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    assert "first: 2" in done.stdout, done.stdout + done.stderr
    assert re.fullmatch(
        r"error: The checkpoint of step 8 could not be written to .*No space left on device.*make room.* "
        r"The checkpoint of step 4 is kept\.\n",
        done.stderr,
    )
    assert "second: 0" in done.stdout
    assert '"state": "done"' in done.stdout
