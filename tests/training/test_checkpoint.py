"""Checkpoints: bit-exact round trips, what is kept, kinds of damage, failing writes, killed processes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.errors import CheckpointError
from transformer.training import checkpoint
from transformer.training.checkpoint import Checkpoints

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPORARY = "*.orbax-checkpoint-tmp"


def make_state(step: int) -> dict:
    """A small state that differs in every leaf from that of any other step."""
    w = jax.random.normal(jax.random.key(step), (64, 48))
    return {
        "params": {"w": w, "b": w[0].astype(jnp.bfloat16)},
        "moments": (w * 2, w - 1),
        "count": jnp.int32(step),
    }


ABSTRACT = jax.eval_shape(lambda: make_state(0))


def assert_same_bytes(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def fill(directory: Path, steps=(1, 2, 3), keep: int = 3, metrics=None) -> None:
    with Checkpoints(directory, keep) as checkpoints:
        for i, step in enumerate(steps):
            checkpoints.save(step, make_state(step), {"step": step}, metrics[i] if metrics else None)


def largest_file(folder: Path) -> Path:
    """The file that holds the bulk of the arrays."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


# --- round trips ------------------------------------------------------------------------------------------


def test_round_trip_is_bit_exact_for_every_kind_of_leaf(tmp_path):
    state = {
        "float32": jnp.array([[jnp.nan, -0.0, jnp.inf], [1e-45, 3.4e38, -1.5]], jnp.float32),
        "bfloat16": jnp.array([1.5, -0.0, jnp.nan], jnp.bfloat16),
        "half": jnp.arange(5, dtype=jnp.float16),
        "integers": (jnp.int32(-7), jnp.uint32(2**32 - 1), jnp.arange(3, dtype=jnp.int8)),
        "flags": [jnp.array([True, False])],
        "complex": jnp.array([1 + 2j], jnp.complex64),
        "names.with/odd signs": {"a.b": jnp.ones((1, 1, 2)), "": jnp.float32(3)},
    }
    metadata = {"fingerprint": "abc", "loss": 0.1 + 0.2, "none": None, "nested": {"list": [1, "x", True]}}
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(10, state, metadata)
    restored = Checkpoints(tmp_path, 1).restore(jax.eval_shape(lambda: state))
    assert restored.step == 10
    assert restored.metadata == metadata
    assert_same_bytes(restored.state, state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored.state))


def test_saved_bytes_are_those_of_the_moment_of_the_call_when_the_buffers_are_donated_next(tmp_path):
    step = jax.jit(lambda x: x * 1.5 + 1, donate_argnums=0)
    x = step(jnp.arange(400_000, dtype=jnp.float32))
    expected = []
    with Checkpoints(tmp_path, 4) as checkpoints:
        for i in range(4):
            expected.append(np.array(x))
            checkpoints.save(i, {"x": x}, {})
            donated, x = x, step(x)
            assert donated.is_deleted()  # nothing keeps the step from reusing the buffer
            x = step(step(x))
    for i in reversed(range(4)):
        restored = Checkpoints(tmp_path, 4).restore({"x": jax.ShapeDtypeStruct(x.shape, x.dtype)})
        assert restored.step == i
        assert_same_bytes(restored.state["x"], expected[i])
        shutil.rmtree(tmp_path / str(i))


def test_training_continued_from_a_restored_state_equals_training_on(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: jnp.sin(x * 3) + 0.1, s), donate_argnums=0)
    run = lambda s, n: s if n == 0 else run(step(s), n - 1)  # noqa: E731
    start = {"w": jnp.linspace(0, 1, 10_000)}
    abstract = jax.eval_shape(lambda: start)
    straight = run(jax.tree.map(jnp.copy, start), 6)
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(3, run(start, 3), {})
        assert_same_bytes(run(checkpoints.restore(abstract).state, 3), straight)


def test_restores_to_the_shardings_that_the_abstract_state_names(tmp_path):
    script = """
        import sys, jax, jax.numpy as jnp
        from transformer.training.checkpoint import Checkpoints
        mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        columns = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
        w = jax.device_put(jnp.arange(64.0).reshape(8, 8), rows)
        with Checkpoints(sys.argv[1], 1) as checkpoints:
            checkpoints.save(1, {"w": w}, {})
            here = checkpoints.restore({"w": jax.ShapeDtypeStruct(w.shape, w.dtype)}).state["w"]
            abstract = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=columns)
            there = checkpoints.restore({"w": abstract}).state["w"]
        assert here.devices() == {jax.devices()[0]}
        assert there.sharding == columns and (there == w).all() and (jax.device_put(here, rows) == w).all()
    """
    child = run_python(script, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert child.communicate(timeout=120) == ("", "")
    assert child.returncode == 0


def run_python(script: str, *arguments, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- what is kept -----------------------------------------------------------------------------------------


def test_an_empty_or_missing_directory_restores_nothing_and_stays_as_it_is(tmp_path):
    with Checkpoints(tmp_path / "none", 1) as checkpoints:
        assert checkpoints.restore(ABSTRACT) is None
        assert checkpoints.restore_best(ABSTRACT) is None
        assert checkpoints.best_step() is None
        assert checkpoints.steps() == []
    assert not (tmp_path / "none").exists()


def test_keeps_the_newest_and_the_best(tmp_path):
    kept = []
    with Checkpoints(tmp_path, 2) as checkpoints:
        for step, metric in [
            (1, 3.0),
            (2, 1.0),
            (3, 2.0),
            (4, None),
            (5, float("nan")),
            (6, 0.5),
            (7, 4.0),
            (8, 5.0),
        ]:
            checkpoints.save(step, make_state(step), {}, metric)
            kept.append((checkpoints.steps(), checkpoints.best_step()))
    assert kept == [
        ([1], 1),
        ([1, 2], 2),
        ([2, 3], 2),
        ([2, 3, 4], 2),
        ([2, 4, 5], 2),
        ([5, 6], 6),
        ([6, 7], 6),
        ([6, 7, 8], 6),
    ]


def test_the_best_survives_reopening(tmp_path):
    fill(tmp_path, (1, 2, 3, 4), keep=1, metrics=[2.0, 1.0, 1.0, 3.0])
    with Checkpoints(tmp_path, 1) as checkpoints:
        assert checkpoints.steps() == [2, 4]
        assert checkpoints.best_step() == 2  # the earlier of two equals
        for step, metric in [(5, 1.5), (6, None)]:
            checkpoints.save(step, make_state(step), {}, metric)
        assert checkpoints.steps() == [2, 6]
        best = checkpoints.restore_best(ABSTRACT)
        assert best.step == 2
        assert_same_bytes(best.state, make_state(2))
        checkpoints.save(7, make_state(7), {}, 0.1)
        assert checkpoints.steps() == [7]


def test_without_metrics_there_is_no_best(tmp_path):
    fill(tmp_path, (1, 2, 3), keep=2)
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.best_step() is None
    assert checkpoints.restore_best(ABSTRACT) is None


def test_a_step_is_saved_once(tmp_path):
    fill(tmp_path, (1,))
    with (
        Checkpoints(tmp_path, 3) as checkpoints,
        pytest.raises(CheckpointError, match="Step 1 is already saved"),
    ):
        checkpoints.save(1, make_state(2), {})
    assert_same_bytes(Checkpoints(tmp_path, 3).restore(ABSTRACT).state, make_state(1))


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"train\.keep_checkpoints is 0"):
        Checkpoints(tmp_path, 0)


# --- damage -----------------------------------------------------------------------------------------------


def flip_a_bit(folder: Path) -> None:
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate_the_arrays(folder: Path) -> None:
    path = largest_file(folder)
    os.truncate(path, path.stat().st_size // 2)


def remove_the_arrays(folder: Path) -> None:
    largest_file(folder).unlink()


def remove_an_item(folder: Path) -> None:
    shutil.rmtree(folder / "state")


def empty_the_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def garble_the_record(folder: Path) -> None:
    (folder / "record" / "data.json").write_bytes(bytes(range(256)))


def truncate_the_record(folder: Path) -> None:
    os.truncate(folder / "record" / "data.json", 100)


def alter_the_metadata(folder: Path) -> None:
    path = folder / "record" / "data.json"
    record = json.loads(path.read_text())
    record["metadata"]["step"] += 1
    path.write_text(json.dumps(record))


def alter_the_metric(folder: Path) -> None:
    path = folder / "record" / "data.json"
    path.write_text(path.read_text().replace('"metric": null', '"metric": 0.0'))


def garble_orbax_metadata(folder: Path) -> None:
    (folder / "_CHECKPOINT_METADATA").write_text("[1]")


def swap_with_another_step(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("1"), folder)


DAMAGES = [
    flip_a_bit,
    truncate_the_arrays,
    remove_the_arrays,
    remove_an_item,
    empty_the_folder,
    garble_the_record,
    truncate_the_record,
    alter_the_metadata,
    alter_the_metric,
    garble_orbax_metadata,
    swap_with_another_step,
]


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory):
    directory = tmp_path_factory.mktemp("three")
    fill(directory)
    return directory


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_passed_over_and_its_step_can_be_saved_again(three_checkpoints, tmp_path, damage):
    directory = tmp_path / "checkpoints"
    shutil.copytree(three_checkpoints, directory)
    damage(directory / "3")
    damaged_files = {path.name for path in (directory / "3").rglob("*")}
    warnings = []
    with Checkpoints(directory, 3, warn=warnings.append) as checkpoints:
        restored = checkpoints.restore(ABSTRACT)
        assert (restored.step, restored.metadata) == (2, {"step": 2})
        assert_same_bytes(restored.state, make_state(2))
        assert len(warnings) == 1
        assert f"step 3 in {directory / '3'} is damaged" in warnings[0]
        assert "\n" not in warnings[0]
        assert checkpoints.steps() == [1, 2]
        assert sorted(path.name for path in directory.iterdir()) == ["1", "2", "3"]  # reading changes nothing

        checkpoints.save(3, make_state(30), {"step": 30})
        assert checkpoints.steps() == [1, 2, 3]
        assert_same_bytes(checkpoints.restore(ABSTRACT).state, make_state(30))
    assert {path.name for path in (directory / "3.damaged-1").rglob("*")} == damaged_files
    assert len(warnings) == 1
    reopened = Checkpoints(directory, 3, warn=warnings.append)
    assert reopened.restore(ABSTRACT).step == 3
    assert len(warnings) == 1


def test_damaged_checkpoints_are_not_counted_among_the_newest(tmp_path):
    fill(tmp_path, (10, 20, 30))
    for step in ("20", "30"):
        flip_a_bit(tmp_path / step)
    with Checkpoints(tmp_path, 1, warn=lambda line: None) as checkpoints:
        assert checkpoints.restore(ABSTRACT).step == 10
        for step in (15, 20, 25, 30):
            checkpoints.save(step, make_state(step), {})
            assert checkpoints.steps() == [step]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20.damaged-1", "30", "30.damaged-1"]


def test_a_step_damaged_twice_is_set_aside_twice(tmp_path):
    fill(tmp_path, (1, 2))
    for _ in range(2):
        flip_a_bit(tmp_path / "2")
        with Checkpoints(tmp_path, 2, warn=lambda line: None) as checkpoints:
            assert checkpoints.restore(ABSTRACT).step == 1
            checkpoints.save(2, make_state(2), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "2.damaged-1", "2.damaged-2"]


def test_damage_found_while_saving_goes_on_is_set_aside_by_the_next_save(tmp_path):
    with Checkpoints(tmp_path, 3, warn=lambda line: None) as checkpoints:
        for step, metric in [(1, 2.0), (2, 1.0)]:
            checkpoints.save(step, make_state(step), {}, metric)
        checkpoints.wait()
        flip_a_bit(tmp_path / "2")
        assert checkpoints.restore_best(ABSTRACT).step == 1
        for step in (2, 3):
            checkpoints.save(step, make_state(step), {}, 3.0)
        assert checkpoints.steps() == [1, 2, 3]
        assert checkpoints.best_step() == 1
    assert (tmp_path / "2.damaged-1").is_dir()


def test_without_the_digest_a_flipped_bit_goes_unnoticed(tmp_path, monkeypatch):
    """Orbax alone does not see it: this is what `test_a_damaged_checkpoint...[flip_a_bit]` would miss."""

    def describe_without_content(array):
        return {"dtype": array.dtype.name, "shape": list(array.shape)}

    monkeypatch.setattr(checkpoint, "_describe", describe_without_content)
    fill(tmp_path, (1, 2))
    flip_a_bit(tmp_path / "2")
    warnings = []
    restored = Checkpoints(tmp_path, 2, warn=warnings.append).restore(ABSTRACT)
    assert restored.step == 2
    assert warnings == []
    with pytest.raises(AssertionError):
        assert_same_bytes(restored.state, make_state(2))


def test_when_all_are_damaged_it_says_so_every_time(tmp_path):
    fill(tmp_path, (1, 2))
    for step in "12":
        remove_the_arrays(tmp_path / step)
    warnings = []
    checkpoints = Checkpoints(tmp_path, 2, warn=warnings.append)
    for _ in range(2):  # a second look must not take the directory for an empty one
        with pytest.raises(CheckpointError, match="delete it to start from the beginning") as caught:
            checkpoints.restore(ABSTRACT)
        assert str(tmp_path) in str(caught.value)
    assert len(warnings) == 2


def test_a_damaged_best_gives_way_to_the_second_best(tmp_path, capsys):
    fill(tmp_path, (1, 2, 3), metrics=[1.0, 3.0, 2.0])
    flip_a_bit(tmp_path / "1")
    checkpoints = Checkpoints(tmp_path, 3)
    assert checkpoints.restore_best(ABSTRACT).step == 3
    assert capsys.readouterr().err.startswith(f"warning: The checkpoint of step 1 in {tmp_path / '1'} is damaged")


def test_restore_best_does_not_call_an_unreadable_directory_empty(tmp_path):
    fill(tmp_path, (1,), metrics=[1.0])
    garble_the_record(tmp_path / "1")
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* is intact"):
        Checkpoints(tmp_path, 1, warn=lambda line: None).restore_best(ABSTRACT)


def other(change) -> dict:
    state = {"params": dict(ABSTRACT["params"]), "moments": ABSTRACT["moments"], "count": ABSTRACT["count"]}
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["params"].update(w=jax.ShapeDtypeStruct((64, 64), jnp.float32)),
            r"params\.w is float32\[64, 48\] in it and float32\[64, 64\] in this run",
        ),
        (
            lambda s: s["params"].update(b=jax.ShapeDtypeStruct((48,), jnp.float32)),
            r"params\.b is bfloat16\[48\] in it and float32\[48\] in this run",
        ),
        (lambda s: s["params"].pop("b"), r"params\.b is bfloat16\[48\] in it and absent in this run"),
        (
            lambda s: s["params"].update(extra=s["params"]["b"]),
            r"params\.extra is absent in it and bfloat16\[48\] in this run",
        ),
    ],
    ids=["shape", "dtype", "missing", "extra"],
)
def test_the_checkpoint_of_another_model_is_an_error_and_not_damage(three_checkpoints, change, message):
    warnings = []
    checkpoints = Checkpoints(three_checkpoints, 3, warn=warnings.append)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.restore(other(change))
    assert str(three_checkpoints / "3") in str(caught.value)
    assert warnings == []
    assert checkpoints.steps() == [1, 2, 3]


# --- writes that fail -------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch):
    """A context manager: while it is open, writing the `record` or the `state` of a checkpoint fails."""
    from orbax.checkpoint import v1 as ocp
    from orbax.checkpoint.experimental.v1._src.handlers.pytree_handler import PyTreeHandler

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def fail_late(*args, **kwargs):
        await asyncio.sleep(0.2)  # the arrays are written by then
        fail()

    @contextlib.contextmanager
    def full(item: str):
        with monkeypatch.context() as patch:
            if item == "record":
                patch.setattr(ocp.handlers.JsonHandler, "_background_save", fail_late)
            else:
                patch.setattr(PyTreeHandler, "save", fail)
            yield

    return full


@pytest.mark.parametrize(
    "next_call",
    [
        lambda checkpoints: checkpoints.wait(),
        lambda checkpoints: checkpoints.save(3, make_state(3), {}),
        lambda checkpoints: checkpoints.steps(),
        lambda checkpoints: checkpoints.close(),
    ],
    ids=["wait", "save", "steps", "close"],
)
@pytest.mark.parametrize("item", ["record", "state"])
def test_a_failed_write_is_reported_by_the_next_call_and_leaves_the_one_before(tmp_path, full_disk, next_call, item):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, make_state(1), {}, 1.0)
    checkpoints.wait()
    with full_disk(item):
        checkpoints.save(2, make_state(2), {}, 0.5)
        with pytest.raises(CheckpointError) as caught:
            next_call(checkpoints)
    message = str(caught.value)
    assert f"step 2 could not be written to {tmp_path}" in message
    assert "No space left on device" in message
    assert "\n" not in message
    checkpoints.close()  # reported once

    with Checkpoints(tmp_path, 1) as checkpoints:
        assert checkpoints.steps() == [1]
        assert checkpoints.best_step() == 1
        assert_same_bytes(checkpoints.restore(ABSTRACT).state, make_state(1))
        checkpoints.save(2, make_state(2), {}, 0.5)
        assert checkpoints.steps() == [2]
    assert not list(tmp_path.glob(TEMPORARY))


def test_saving_may_go_on_after_a_failure(tmp_path, full_disk):
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        checkpoints.wait()
        with full_disk("record"):
            checkpoints.save(2, make_state(2), {})
            with pytest.raises(CheckpointError):
                checkpoints.wait()
        checkpoints.save(3, make_state(3), {})
        assert checkpoints.steps() == [3]  # step 1 was to go once step 2 was there, and has not been forgotten


def test_a_process_that_cannot_write_still_exits(tmp_path):
    script = """
        import pathlib, shutil, sys
        import numpy as np
        from transformer.errors import CheckpointError
        from transformer.training.checkpoint import Checkpoints
        directory = pathlib.Path(sys.argv[1], "checkpoints")
        checkpoints = Checkpoints(directory, 2)
        checkpoints.save(1, {"w": np.ones(3)}, {})
        checkpoints.wait()
        shutil.rmtree(directory)
        directory.write_text("in the way")
        checkpoints.save(2, {"w": np.ones(3)}, {})
        try:
            checkpoints.close()
        except CheckpointError as error:
            print(error, end="")
    """
    output, errors = run_python(script, tmp_path).communicate(timeout=60)
    assert errors == ""
    assert f"step 2 could not be written to {tmp_path / 'checkpoints'} (" in output
    assert "Not a directory" in output


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if not mount or os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_really_full(tiny_disk):
    small = {"w": jax.random.normal(jax.random.key(0), (200, 200))}
    large = {"w": jax.random.normal(jax.random.key(1), (1000, 1000))}
    checkpoints = Checkpoints(tiny_disk / "checkpoints", 2)
    checkpoints.save(1, small, {"good": True})
    checkpoints.save(2, large, {})
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        checkpoints.wait()
    assert str(tiny_disk / "checkpoints") in str(caught.value)
    assert checkpoints.steps() == [1]
    restored = checkpoints.restore(jax.eval_shape(lambda: small))
    assert restored.metadata == {"good": True}
    assert_same_bytes(restored.state, small)
    checkpoints.save(3, small, {})  # fits once the leftovers of step 2 are gone
    checkpoints.close()
    assert Checkpoints(tiny_disk / "checkpoints", 2).steps() == [1, 3]


# --- killed processes -------------------------------------------------------------------------------------

SAVE_FOREVER = """
    import itertools, sys
    import numpy as np
    from transformer.training.checkpoint import Checkpoints
    def make_state(step):
        return {"w": np.random.default_rng(step).normal(size=1_000_000).astype(np.float32)}
    sys.stdin.readline()
    with Checkpoints(sys.argv[1], 2) as checkpoints:
        restored = checkpoints.restore(make_state(0))
        for step in itertools.count(restored.step + 1 if restored else 0):
            checkpoints.save(step, make_state(step), {"step": step}, float(step % 3))
            checkpoints.wait()
            print(step, flush=True)
"""


def test_what_a_killed_save_left_is_ignored_by_readers_and_removed_by_the_next_save(tmp_path):
    fill(tmp_path, (1, 2))
    leftover = tmp_path / TEMPORARY.replace("*", "7")
    (tmp_path / "2").rename(leftover)
    with Checkpoints(tmp_path, 2, warn=pytest.fail) as checkpoints:
        assert checkpoints.steps() == [1]
        assert checkpoints.restore(ABSTRACT).step == 1
        assert leftover.is_dir()  # it might be the save in progress of a run that is being watched
        checkpoints.save(2, make_state(2), {})
        assert checkpoints.steps() == [1, 2]
        assert not leftover.exists()


def test_kill_in_the_middle_of_a_save(tmp_path):
    children = [run_python(SAVE_FOREVER, tmp_path) for _ in range(5)]  # all import at once, then take turns
    try:
        kill_in_the_middle_of_a_save(children, tmp_path)
    finally:
        for child in children:
            child.kill()
            child.communicate()


def kill_in_the_middle_of_a_save(children, directory) -> None:
    delays = random.Random(0)
    abstract = {"w": jax.ShapeDtypeStruct((1_000_000,), jnp.float32)}
    leftovers, step = 0, -1
    for child in children:
        child.stdin.write("your turn\n")
        child.stdin.flush()
        assert int(child.stdout.readline()) == step + 1  # this save has cleared what the last kill left
        while not list(directory.glob(TEMPORARY)):
            assert child.poll() is None
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.03))
        child.kill()
        output, errors = child.communicate(timeout=60)
        assert errors == ""
        printed = int((output.split() or [step + 1])[-1])
        leftovers += bool(list(directory.glob(TEMPORARY)))
        restored = Checkpoints(directory, 2, warn=pytest.fail).restore(abstract)
        step = restored.step
        assert printed <= step <= printed + 1  # one more if killed between commit and print
        assert restored.metadata == {"step": step}
        expected = np.random.default_rng(step).normal(size=1_000_000).astype(np.float32)
        assert_same_bytes(restored.state["w"], expected)
    assert leftovers, "no kill fell into a save, so this has shown nothing"
    with Checkpoints(directory, 2) as checkpoints:
        checkpoints.save(step + 1, restored.state, {})
    assert not list(directory.glob(TEMPORARY))


# --- manners ----------------------------------------------------------------------------------------------


def test_orbax_is_not_imported_until_a_checkpoint_is_read_or_written(tmp_path):
    script = """
        import sys
        from transformer.training.checkpoint import Checkpoints
        with Checkpoints(sys.argv[1], 1) as checkpoints:
            assert checkpoints.restore({}) is None and checkpoints.best_step() is None
        assert not any(name.partition(".")[0] == "orbax" for name in sys.modules)
    """
    child = run_python(script, tmp_path)
    assert child.communicate(timeout=60) == ("", "")


def test_orbax_keeps_silent_and_others_may_log(tmp_path, caplog):
    from absl import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    try:
        with caplog.at_level("INFO"):
            fill(tmp_path, (1, 2))
            Checkpoints(tmp_path, 2).restore(ABSTRACT)
            logging.info("a note of our own")
    finally:
        logging.set_verbosity(level)
    noise = [entry.getMessage() for entry in caplog.records if "orbax" in entry.pathname]
    assert noise == []
    assert "a note of our own" in [entry.getMessage() for entry in caplog.records]


# As seen on a full disk: the second write of a save to fail, while its array is opened and while it is filled.
ABANDONED = {
    "opening": 'Error opening "zarr3" driver: No space left [os_error_code="28"] [tensorstore_spec=...]',
    "filling": 'Error writing "w/c/0" in OCDBT database at local file "...": No space left [os_error_code="28"]',
    "not a write": "lost",
}


@pytest.mark.parametrize("kind", ABANDONED)
def test_an_abandoned_write_that_fails_is_not_logged(tmp_path, caplog, kind):
    fill(tmp_path, (1,))
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    future.set_exception(ValueError(ABANDONED[kind]))
    loop.close()
    del future
    gc.collect()
    said = [entry.getMessage() for entry in caplog.records if entry.name == "asyncio"]
    assert len(said) == (kind == "not a write"), said


def test_only_late_writes_are_passed_over():
    """What Orbax abandons reports to a closed loop, from nowhere; every other report is somebody's defect."""
    heard = []
    hook = checkpoint._WithoutLateWrites(heard.append)
    closed = RuntimeError("Event loop is closed")
    reports = [
        SimpleNamespace(exc_value=error, object=origin)
        for error, origin in ((closed, None), (closed, print), (RuntimeError("lost"), None), (OSError(), None))
    ]
    for report in reports:
        hook(report)
    assert heard == reports[1:]
