"""Data and models that do not fit each other are refused in a sentence that names both; nothing is cut in silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.tiny import LENGTH, tiny
from transformer.data.vocabularies import Characters
from transformer.errors import ConfigError, DataError, UserError
from transformer.inference.checks import open_subject
from transformer.inference.generate import generate
from transformer.model import build
from transformer.training.run import LoadedRun, load_dataset, make_program, train

LEARNED = {"model.vocab_size": 0, "model.position.kind": "learned", "data.sequence_length": 4, "wandb.mode": "disabled"}
COPY = {"data.source": "task", "data.task": "copy", "data.task_length": 6}


@pytest.mark.parametrize(
    "family",
    [{}, {"model.family": "encoder_decoder", "data.task_layout": "pair"}],
    ids=["decoder", "encoder_decoder"],
)
def test_rows_of_a_task_longer_than_the_position_table(family, tmp_path):
    with pytest.raises(UserError, match=r"The input has \d+ tokens but model\.position\.kind=learned knows only 4"):
        train(tiny({**LEARNED, **COPY, **family}), tmp_path, quiet=True)


def test_a_target_longer_than_the_decoders_table(tmp_path):
    (tmp_path / "pairs.tsv").write_text("".join(f"{i}\tnumber {i}\n" for i in range(60)))
    pairs = {"model.family": "encoder_decoder", "data.source": "pairs", "data.path": f"{tmp_path}/pairs.tsv"}
    with pytest.raises(DataError, match=r"takes \d+ tokens, but data\.sequence_length leaves room for 3; raise it, or"):
        train(tiny({**LEARNED, **pairs}), tmp_path / "run", quiet=True)


def test_a_source_longer_than_the_encoders_table():
    model = build(tiny({"model.family": "encoder_decoder", "model.position.kind": "learned"}))
    with pytest.raises(UserError, match=rf"The input has {LENGTH + 1} tokens .* knows only {LENGTH} positions"):
        generate(model, [[1]], 3, source_BS=np.ones((1, LENGTH + 1), np.int32))


def characters(tmp_path: Any) -> dict[str, Any]:
    (tmp_path / "text.txt").write_text("abc" * 200)
    return {
        "model.vocab_size": 0,
        "data.source": "text",
        "data.path": f"{tmp_path}/text.txt",
        "data.vocabulary": "characters",
    }


def test_a_run_is_not_measured_with_another_vocabulary(tmp_path):
    config = tiny(characters(tmp_path))
    known = Characters("abcd", separated=False)
    with pytest.raises(DataError, match="its vocabulary is not the one this run was trained with"):
        open_subject(LoadedRun(None, config, known, None, None, 0), "validation")  # type: ignore[arg-type]


def test_a_model_with_fewer_rows_than_the_data_has_tokens(tmp_path):
    config = tiny({**characters(tmp_path), "model.vocab_size": 2})
    with pytest.raises(ConfigError, match=r"model\.vocab_size=2 is smaller than the vocabulary of the data, 3"):
        make_program(config, load_dataset(config))


def test_more_labels_than_classes():
    role = {"data.source": "task", "data.task": "role", "data.task_layout": "label", "model.family": "encoder"}
    head = {"model.head.kind": "classify", "model.head.num_labels": 2, "model.vocab_size": 0}
    config = tiny({**role, **head, "wandb.mode": "disabled"})
    with pytest.raises(ConfigError, match=r"model\.head\.num_labels=2, but .*role.* has 8 labels; set it to 8"):
        make_program(config, load_dataset(config))
