"""What holds for every switch holds for pairs of them: fifty legal pairs, drawn with a fixed seed."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from tests.model.test_cache import PIECES, check_cached_equals_full
from tests.model.test_causality import BY_TOKEN, check_no_future, influence
from tests.model.test_variants import check_every_leaf_learns, check_parameter_count
from tests.tiny import LENGTH, label, tiny
from transformer.errors import ConfigError, UserError
from transformer.model import declare

NUMBER, SEED = 50, 0


def legal(overrides: dict) -> bool:
    try:
        tiny(overrides)
    except ConfigError:
        return False
    return True


def pairs() -> list[dict]:
    """The first of all pairs of switches of different fields that go together, in an order that the seed decides."""
    every, found = list(itertools.combinations(BY_TOKEN, 2)), []
    random.Random(SEED).shuffle(every)
    for a, b in every:
        disjoint = all(a[path] == b[path] for path in a.keys() & b.keys())
        if disjoint and next(iter(a)) != next(iter(b)) and legal({**a, **b}):
            found.append({**a, **b})
        if len(found) == NUMBER:
            break
    return found


PAIRS = pairs()


def test_the_draw_is_legal_varied_and_selective():
    assert len(PAIRS) == NUMBER
    fields = {path for pair in PAIRS for path in pair}
    assert len(fields) >= 20
    for weights, other in (("relu", {"model.attention.sinks": "learned"}), ("uniform", {"model.position.kind": "t5"})):
        assert not legal({"model.attention.weights": weights, **other})


@pytest.mark.parametrize("overrides", PAIRS, ids=label)
def test_parameters_are_counted_right(overrides):
    check_parameter_count(tiny(overrides))


@pytest.mark.parametrize("overrides", PAIRS, ids=label)
def test_nothing_comes_from_the_future(overrides):
    found = influence(overrides, moved=True)
    assert np.isfinite(found).all()
    model = declare(tiny(overrides))
    if model.causal and not model.looks_ahead:
        check_no_future(found)
    else:
        with pytest.raises(AssertionError, match="the future leaks"):
            check_no_future(found)


@pytest.mark.parametrize("overrides", PAIRS, ids=label)
def test_a_gradient_reaches_every_leaf(overrides):
    check_every_leaf_learns(tiny(overrides), except_for=("key.bias",), moved=True)


@pytest.mark.parametrize("overrides", PAIRS, ids=label)
def test_cached_decoding_equals_the_full_pass(overrides):
    model = declare(tiny(overrides))
    if hasattr(model, "empty_cache") and model.causal and (model.position.cache_length or LENGTH) >= LENGTH:
        check_cached_equals_full(overrides, PIECES["prefill, then one by one"])
    else:
        with pytest.raises((UserError, AttributeError), match=r"not exact|'Encoder' object has no attribute"):
            check_cached_equals_full(overrides, PIECES["prefill, then one by one"])
