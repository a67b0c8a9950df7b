"""An encoder and two encoder-decoders equal independent implementations, without and with padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.golden.families import GOLDEN_FAMILIES, WRONG, in_turns
from tests.golden.weights import read, rebuild, worst

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def fixtures() -> dict[str, Any]:
    return {name: read(name) for name in GOLDEN_FAMILIES}


@pytest.mark.parametrize("case", ["plain", "right"])
@pytest.mark.parametrize("name", GOLDEN_FAMILIES)
def test_logits_are_theirs(name, case, fixtures):
    _, weights, cases = fixtures[name]
    golden = GOLDEN_FAMILIES[name]
    assert worst(rebuild(golden.overrides, golden.translate(weights)), cases[case]) <= TOLERANCE
    assert cases[case].logits.std() > 300 * TOLERANCE  # there is something to compare


@pytest.mark.parametrize(("name", "wrong"), WRONG, ids=lambda x: x if isinstance(x, str) else str(*x.items()))
def test_a_wrong_switch_is_noticed(name, wrong, fixtures):
    _, weights, cases = fixtures[name]
    model = rebuild({**GOLDEN_FAMILIES[name].overrides, **wrong}, GOLDEN_FAMILIES[name].translate(weights))
    assert worst(model, cases["plain"]) > TOLERANCE


@pytest.mark.parametrize("name", GOLDEN_FAMILIES)
def test_padding_that_is_seen_is_noticed(name, fixtures):
    _, weights, cases = fixtures[name]
    golden = GOLDEN_FAMILIES[name]
    seen = {key: value for key, value in cases["right"].inputs.items() if key != "attention_mask"}
    model = rebuild(golden.overrides, golden.translate(weights))
    is_token = cases["right"].inputs.get("decoder_attention_mask", cases["right"].inputs["attention_mask"]) != 0
    assert worst(model, type(cases["right"])(seen, cases["right"].logits), is_token) > TOLERANCE


def test_token_types_matter(fixtures):
    _, weights, cases = fixtures["bert"]
    model = rebuild(GOLDEN_FAMILIES["bert"].overrides, GOLDEN_FAMILIES["bert"].translate(weights))
    flipped = {**cases["plain"].inputs, "token_type_ids": 1 - cases["plain"].inputs["token_type_ids"]}
    assert worst(model, type(cases["plain"])(flipped, cases["plain"].logits)) > TOLERANCE


def test_the_order_of_sinusoids_matters(fixtures):
    _, weights, cases = fixtures["marian"]
    ours = GOLDEN_FAMILIES["marian"].translate(weights)
    for _ in range(2):  # a perfect shuffle of 16 features comes back after four
        ours = {name: in_turns(name, value) for name, value in ours.items()}
    assert worst(rebuild(GOLDEN_FAMILIES["marian"].overrides, ours), cases["plain"]) > TOLERANCE
    np.testing.assert_array_equal(in_turns("gain", np.arange(16))[:4], [0, 8, 1, 9])
