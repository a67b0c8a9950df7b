"""The training-step benchmark compares two sides that really do the same work."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import train_step
from benchmarks.reporting import BenchmarkError
from benchmarks.sides import ADAMW, CLIP, VOCAB_SIZE, Ours, learnable_tokens

if importlib.util.find_spec("torch") is None:
    pytest.skip("needs PyTorch, the extra [bench]", allow_module_level=True)

TINY = train_step.SIZES["tiny"]
LEARNS = {"parameters": 10, "first_losses": [5.5, 5.4]}


@pytest.fixture(scope="module")
def ours():
    return Ours(TINY)


@pytest.fixture(scope="module")
def gpt(ours):
    """Our tiny weights in the PyTorch model."""
    from benchmarks.torch_gpt import GPT, Shape, load_weights

    shape = Shape(VOCAB_SIZE, TINY.num_layers, TINY.d_model, TINY.num_heads, TINY.sequence_length)
    model = GPT(shape)
    load_weights(model, ours.facts()[0])
    return model


def test_both_sides_compute_the_same_loss_and_steps(ours, gpt):
    import torch

    from benchmarks.torch_gpt import make_optimizer
    from benchmarks.torch_gpt import train_step as torch_step

    optimizer, tokens = make_optimizer(gpt, **ADAMW), learnable_tokens()
    theirs = []
    for starts in ours.feed.chunk(0, 24):
        rows = tokens[starts[:, None] + np.arange(TINY.sequence_length + 1)]
        theirs.append(float(torch_step(gpt, optimizer, torch.from_numpy(rows.astype(np.int64)), CLIP)))
    mine = ours.train(24, steps_per_call=7)
    np.testing.assert_allclose(mine, theirs, atol=2e-5)
    assert np.mean(mine[-3:]) < np.mean(mine[:3]) - 0.05
    assert sum(p.numel() for p in gpt.parameters()) == sum(p.size for p in ours.facts()[0].values())


def test_number_of_steps_per_call_does_not_change_the_losses():
    np.testing.assert_array_equal(Ours(TINY).train(6, steps_per_call=1), Ours(TINY).train(6, steps_per_call=4))


def test_tokens_are_learnable_but_not_trivial():
    tokens = learnable_tokens(1 << 15).astype(int)
    surprise = (tokens[1:] - 5 * tokens[:-1] - 7) % VOCAB_SIZE
    np.testing.assert_allclose(np.bincount(surprise, minlength=VOCAB_SIZE)[:4] / len(surprise), 0.25, atol=0.02)
    assert np.unique(tokens).size == VOCAB_SIZE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": 11}, "has 11 parameters, ours 10"),
        ({"first_losses": [5.4, 5.5]}, "does not learn"),
        ({"first_losses": [5.5, float("nan")]}, "does not learn"),
        ({"first_losses": [5.5, 5.39]}, "does not do the work of ours"),
    ],
)
def test_sides_that_differ_are_not_compared(change, message):
    train_step.compare("torch", LEARNS, LEARNS)
    with pytest.raises(BenchmarkError, match=message):
        train_step.compare("torch", {**LEARNS, **change}, LEARNS)


def test_command_measures_a_tiny_shape(tmp_path):
    stored = tmp_path / "speed.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.train_step",
        "--sizes=tiny",
        "--rounds=2",
        f"--json={stored}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "speed-up" in done.stdout
    result = json.loads(stored.read_text())["numbers"]["sizes"]["tiny"]
    ours, torch = result["sides"]["ours"], result["sides"]["torch"]
    assert ours["parameters"] == torch["parameters"]
    np.testing.assert_allclose(ours["first_losses"], torch["first_losses"], atol=1e-4)
    tokens = TINY.timed_steps * TINY.batch_size * TINY.sequence_length
    for side in (ours, torch):
        walls = [turn["wall"] for turn in side["turns"]]
        assert side["tokens_per_second"] == pytest.approx(np.median([tokens / wall for wall in walls]))
        assert side["model_flops_per_second"] == pytest.approx(side["tokens_per_second"] * result["flops_per_token"])
    assert ours["speed_up_of_medians"] == pytest.approx(ours["tokens_per_second"] / torch["tokens_per_second"])
    assert torch["speed_up_by_round"]["median"] == 1
    assert 0 <= torch["between_share"]["median"] < 1


def test_command_refuses_an_unknown_size(capsys):
    with pytest.raises(SystemExit):
        train_step.main(["--sizes=huge"])
    assert "--sizes=huge is not one of: tiny, quick, small" in capsys.readouterr().err
