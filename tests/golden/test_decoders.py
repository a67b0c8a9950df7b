"""Decoders equal independent implementations: logits of random weights, without and with padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.golden.weights import GOLDEN, HERE, logits, read, rebuild, worst

TOLERANCE = 1e-4
DECODERS = ("gpt2", "llama", "mistral", "qwen3")
CASES = ("plain", "right", "left")

# One switch set wrong: the comparison must notice each.
SABOTAGE: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"model.norm.epsilon": 1e-6}),
    ("gpt2", {"model.ffn.kind": "gelu"}),
    ("gpt2", {"model.attention.scale": "inv"}),
    ("gpt2", {"model.residual.arrangement": "parallel"}),
    ("gpt2", {"model.norm.kind": "rmsnorm"}),
    ("gpt2", {"model.attention.mask": "none"}),
    ("llama", {"model.position.rope_base": 9000.0}),
    ("llama", {"model.position.rope_fraction": 0.5}),
    ("llama", {"model.norm.epsilon": 1e-6}),
    ("llama", {"model.norm.kind": "layernorm"}),
    ("llama", {"model.ffn.kind": "geglu"}),
    ("llama", {"model.embedding.scale": 0.0}),
    ("mistral", {"model.attention.window": 4}),
    ("mistral", {"model.attention.window": 6}),
    ("mistral", {"model.attention.window": 0}),
    ("qwen3", {"model.position.rope_base": 10_000.0}),
    ("qwen3", {"model.norm.epsilon": 1e-5}),
]


@pytest.fixture(scope="module")
def fixtures() -> dict[str, Any]:
    return {name: read(name) for name in DECODERS}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_theirs(name, case, fixtures):
    _, weights, cases = fixtures[name]
    model = rebuild(GOLDEN[name].overrides, GOLDEN[name].translate(weights))
    assert worst(model, cases[case]) <= TOLERANCE
    assert cases[case].logits.std() > 0.1  # there is something to compare


@pytest.mark.parametrize(("name", "wrong"), SABOTAGE, ids=lambda x: x if isinstance(x, str) else str(*x.items()))
def test_a_wrong_switch_is_noticed(name, wrong, fixtures):
    _, weights, cases = fixtures[name]
    model = rebuild({**GOLDEN[name].overrides, **wrong}, GOLDEN[name].translate(weights))
    assert worst(model, cases["plain"]) > TOLERANCE


def test_a_missing_qk_norm_is_noticed(fixtures):
    _, weights, cases = fixtures["qwen3"]
    ours = {name: value for name, value in GOLDEN["qwen3"].translate(weights).items() if "query_norm" not in name}
    ours = {name: value for name, value in ours.items() if "key_norm" not in name}
    model = rebuild({**GOLDEN["qwen3"].overrides, "model.attention.qk_norm": "none"}, ours)
    assert worst(model, cases["plain"]) > TOLERANCE


@pytest.mark.parametrize("kernel", ["query", "key"])
def test_another_pairing_of_rotated_features_is_noticed(kernel, fixtures):
    """Neighbours paired, as in the paper, would need the columns of each head in another order."""
    _, weights, cases = fixtures["llama"]
    ours = GOLDEN["llama"].translate(weights)
    for name in [name for name in ours if name.endswith(f"{kernel}.kernel")]:
        heads = ours[name].reshape(16, -1, 2, 2)
        ours[name] = heads.swapaxes(2, 3).reshape(16, -1)
    assert worst(rebuild(GOLDEN["llama"].overrides, ours), cases["plain"]) > TOLERANCE


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_is_seen_is_noticed(name, side, fixtures):
    """Without segments, tokens read padding (on the right too, where it shares the position of the last token)."""
    _, weights, cases = fixtures[name]
    model = rebuild(GOLDEN[name].overrides, GOLDEN[name].translate(weights))
    inputs, is_token = dict(cases[side].inputs), cases[side].inputs["attention_mask"] != 0
    del inputs["attention_mask"]
    assert np.abs(logits(model, inputs) - cases[side].logits)[is_token].max() > TOLERANCE


def test_fixtures_are_small_and_say_where_they_come_from(fixtures):
    assert sum(path.stat().st_size for path in HERE.glob("*.npz")) < 2 * 2**20
    for about, _, _ in fixtures.values():
        assert {"python", "torch", "transformers"} <= about["versions"].keys()
