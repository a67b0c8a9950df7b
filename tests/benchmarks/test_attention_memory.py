"""The memory benchmark reads what the compiler says, and flash attention grows linearly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import attention_memory
from transformer.model.attention_halves import SHARE_OF_SCORES


def test_growth_is_the_exponent():
    assert attention_memory.growth([2, 4, 8], [12, 48, 192]) == pytest.approx(2)
    assert attention_memory.growth([2, 4, 8], [12, 24, 48]) == pytest.approx(1)


def test_flash_grows_linearly_and_the_reference_with_the_square(tmp_path, capsys):
    stored = tmp_path / "memory.json"
    arguments = ["--backends=reference,flash", "--lengths=512,2048,8192", f"--json={stored}"]
    assert attention_memory.main(arguments) == 0
    rows = json.loads(stored.read_text())["numbers"]["backends"]
    assert rows["flash"]["growth"] == pytest.approx(1, abs=0.1)
    # The reference holds all scores that are made, twice at least and four times at most: it grows with the square.
    made = SHARE_OF_SCORES * 4 * np.array([512, 2048, 8192]) ** 2
    assert all(2 * made < rows["reference"]["bytes"]) and all(rows["reference"]["bytes"] < 4 * made)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("growth", "reference", "flash"))


@pytest.mark.parametrize("arguments", [["--backends=fast"], ["--lengths=512"], ["--lengths=512,0"]])
def test_refuses_what_it_cannot_measure(arguments, capsys):
    with pytest.raises(SystemExit):
        attention_memory.main(arguments)
    assert arguments[0] in capsys.readouterr().err
