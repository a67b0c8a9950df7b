"""Fine-tuning: what is taken from a run, what is new, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.tiny import named, nested
from transformer import load, resolve
from transformer.config import config_hash
from transformer.errors import ConfigError, DataError, UserError
from transformer.training.run import load_dataset, make_program, train
from transformer.training.run_directory import RunDirectory

STEPS = 3
TINY: dict[str, Any] = {
    "model.family": "encoder",
    "model.d_model": 16,
    "model.num_layers": 1,
    "model.attention.num_heads": 2,
    "data.sequence_length": 16,
    "train.steps": STEPS,
    "train.batch_size": 4,
    "train.eval_every": 0,
    "eval.tokens": 64,
    "wandb.mode": "disabled",
}
INTENT = {"model.head.kind": "classify", "data.source": "labelled", "data.label_column": "label"}


def config(**values: Any) -> Any:
    return resolve(nested({**TINY, **{k.replace("__", "."): v for k, v in values.items()}}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("transfer")


@pytest.fixture(scope="module")
def letters(folder) -> Path:
    path = folder / "letters.txt"
    path.write_bytes(np.random.default_rng(0).integers(97, 123, 2000, dtype=np.uint8).tobytes())
    return path


@pytest.fixture(scope="module")
def labels(folder) -> Path:
    rng, path = np.random.default_rng(1), folder / "labels.csv"
    rows = [f"{bytes(rng.integers(97, 123, 9, dtype=np.uint8)).decode()},{'ab'[i % 2]}" for i in range(80)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def pretrained(folder, letters) -> Path:
    return train(config(data__source="text", data__path=str(letters)), folder / "mlm", quiet=True).path


def intent(labels: Path, **values: Any) -> Any:
    return config(data__path=str(labels), **{k.replace(".", "__"): v for k, v in INTENT.items()}, **values)


def started(settings: Any) -> Any:
    program = make_program(settings, load_dataset(settings))
    return program, named(program.init(0).params)


def test_everything_but_the_head_comes_from_the_run(pretrained, labels):
    program, params = started(intent(labels, train__init_from=str(pretrained)))
    _, fresh = started(intent(labels))
    source = named(load(pretrained).state.params)
    assert set(program.transfer.new) == {name for name in params if name.startswith("head.")}
    assert program.transfer.left == ()
    for name, value in params.items():
        wanted = fresh[name] if name.startswith("head.") else source[name]
        np.testing.assert_array_equal(value, wanted, err_msg=name)
        if "gain" not in name and not name.startswith("head."):
            assert not np.array_equal(value, fresh[name])
    assert str(program.transfer).startswith(f"starting from {len(source)} parameters from {pretrained}, step {STEPS}; ")


def test_a_run_says_where_it_starts_and_ends_with_an_accuracy(pretrained, labels, tmp_path):
    said: list[str] = []
    outcome = train(intent(labels, train__init_from=str(pretrained)), tmp_path / "run", say=said.append)
    assert any(line.startswith("starting from") and "head.output.kernel" in line for line in said)
    assert any("of the positions are padding" in line for line in said)
    assert any("label entropy 0." in line for line in said)
    assert 0 <= outcome.summary["validation_accuracy"] <= 1
    assert "validation_bits_per_byte" not in outcome.summary  # labels are no text
    assert jax.tree.leaves(load(tmp_path / "run").state)  # opens without being asked for the source again


def test_a_run_is_told_apart_by_what_it_starts_from_not_by_where_that_lies(pretrained, labels, tmp_path):
    import shutil

    elsewhere = shutil.copytree(pretrained, tmp_path / "copy")
    hashes = [config_hash(intent(labels, train__init_from=path)) for path in (str(pretrained), str(elsewhere), "")]
    assert hashes[0] == hashes[1] != hashes[2]
    for path in (pretrained, elsewhere):
        RunDirectory.open(tmp_path / "run", intent(labels, train__init_from=str(path))).close()
    with pytest.raises(ConfigError, match=r"train\.init_from: "):
        RunDirectory.open(tmp_path / "run", intent(labels))


def test_another_shape_names_the_field(pretrained, labels):
    with pytest.raises(ConfigError, match=r"has the shape .* there and .* here; model\.d_model is 24 and was 16"):
        started(intent(labels, train__init_from=str(pretrained), model__d_model=24, model__attention__num_heads=2))


def test_another_vocabulary_is_refused(pretrained, labels):
    with pytest.raises(DataError, match="read another vocabulary"):
        started(intent(labels, train__init_from=str(pretrained), data__vocabulary="characters"))


def test_a_directory_that_is_no_run_is_refused(labels, tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        started(intent(labels, train__init_from=str(tmp_path)))


def test_new_special_tokens_get_new_rows(pretrained, labels):
    _, params = started(intent(labels, train__init_from=str(pretrained), model__head__pooling="cls"))
    source = named(load(pretrained).state.params)["embedding.table"]
    table = params["embedding.table"]
    assert table.shape[0] == source.shape[0] + 1
    np.testing.assert_array_equal(table[:-1], source)
    assert np.any(table[-1])
