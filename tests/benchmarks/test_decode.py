"""The generation benchmark compares equal work only."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import decode
from benchmarks.reporting import BenchmarkError

SIZE = decode.SIZES["tiny"]


class Fake:
    """A side that says what it is told to say."""

    def __init__(self, seconds: float, token: int = 1):
        self.seconds, self.token = seconds, token

    def generate(self, prompts: np.ndarray, new: int) -> tuple[float, np.ndarray]:
        return self.seconds, np.full((len(prompts), new), self.token, np.int32)


def test_the_ratio_is_theirs_over_ours():
    found = decode.measure(Fake(2.0), Fake(5.0), SIZE, batch=3, rounds=4, seed=0)
    assert found["ratio"] == 2.5 and found["ratio_by_round"] == [2.5, 2.5, 2.5]
    assert len(found["seconds"]["ours"]) == len(found["seconds"]["theirs"]) == 4
    cells = decode.row("tiny", SIZE, found)
    assert cells[2:5] == (f"{3 * SIZE.new / 2:.0f}", f"{3 * SIZE.new / 5:.0f}", "2.50")


def test_other_tokens_are_refused():
    with pytest.raises(BenchmarkError, match="disagree in 24 of 24 tokens at batch 3"):
        decode.measure(Fake(2.0), Fake(5.0, token=2), SIZE, batch=3, rounds=4, seed=0)


def test_a_peer_that_cannot_start_is_an_error(capsys):
    assert decode.main(["--sizes=tiny", "--peer=/bin/false"]) == 2
    assert "Python with torch and transformers" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--sizes=huge"], ["--rounds=0"]])
def test_bad_arguments_are_named(arguments, capsys):
    with pytest.raises(SystemExit):
        decode.main(arguments)
    assert arguments[0] in capsys.readouterr().err
