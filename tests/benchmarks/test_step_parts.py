"""The parts of a step that are timed beside PyTorch's compute the same on both sides."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from benchmarks import step_parts
from benchmarks.sides import OURS, TORCH
from benchmarks.train_step import SIZES

if importlib.util.find_spec("torch") is None:
    pytest.skip("needs PyTorch, the extra [bench]", allow_module_level=True)

TINY = SIZES["tiny"]


@pytest.fixture(scope="module")
def sides():
    return step_parts.OurParts(TINY), step_parts.TorchParts(TINY)


def gradients(sides, name, *arrays):
    """Gradients with respect to all inputs, ours and PyTorch's; attention's side by side on both."""
    import jax
    import torch

    ours, theirs = (getattr(side, f"_{name}") for side in sides)
    mine, pulled = arrays, [np.array(x) for x in arrays]
    if name == "attention":
        mine = np.split(arrays[0], 3, axis=-1)
    if name == "dense":
        pulled[1] = pulled[1].T.copy()
    output, backward = jax.vjp(ours, *mine)
    pull = np.cos(np.arange(output.size, dtype=np.float32)).reshape(output.shape)
    found = [np.asarray(g) for g in backward(pull)]
    found = [np.concatenate(found, axis=-1)] if name == "attention" else found
    inputs = [torch.from_numpy(x).requires_grad_() for x in pulled]
    other = [g.numpy() for g in torch.autograd.grad(theirs(*inputs), inputs, torch.from_numpy(pull))]
    if name == "dense":
        other[1] = other[1].T
    return found, other


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("dense", ((6, 8), (8, 5))),
        ("attention", ((2, TINY.sequence_length, 3 * TINY.d_model),)),
        ("gelu", ((6, 8),)),
        ("norm", ((6, TINY.d_model), (TINY.d_model,))),
        ("loss", ((6, 256),)),
    ],
)
def test_a_part_is_the_same_on_both_sides(sides, name, shapes):
    arrays = [np.random.default_rng(i).standard_normal(shape, np.float32) for i, shape in enumerate(shapes)]
    for mine, other in zip(*gradients(sides, name, *arrays), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_the_products_are_those_of_the_model(sides):
    """Both sides multiply with every matrix of the model; PyTorch's three projections are one."""
    ours, theirs = (sum(i * o * times for i, o, times in step_parts.matrices(TINY, fused)) for fused in (False, True))
    kernels = [x for name, x in sides[0].facts()[0].items() if name.endswith("kernel") or "embedding" in name]
    assert ours == theirs == sum(x.size for x in kernels)


def test_what_a_part_costs_more_is_a_share_of_pytorchs_step():
    found = {part: {OURS: [0.002], TORCH: [0.001]} for part in step_parts.PARTS}
    found["step"] = {OURS: [0.012], TORCH: [0.010]}
    rows = {row[0]: row[1:] for row in step_parts.table("tiny", found).rows}
    assert rows["gelu"] == ("2.0", "1.0", "0.50", "17%", "+10%")
    assert rows["step"][-1] == "+20%"


def test_command_measures_a_tiny_shape(tmp_path, capsys):
    path = tmp_path / "parts.json"
    assert step_parts.main(["--sizes=tiny", "--rounds=1", f"--json={path}"]) == 0
    stored = json.loads(path.read_text())
    assert set(stored["numbers"]["tiny"]) == {*step_parts.PARTS, "step"}
    assert all(min(row) > 0 for sides in stored["numbers"]["tiny"].values() for row in sides.values())
    with pytest.raises(SystemExit):
        step_parts.main(["--sizes=huge"])
    assert "--sizes=huge is not one of: tiny, quick, small" in capsys.readouterr().err
