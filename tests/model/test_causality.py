"""No prediction may depend on what it is asked to predict. Checked by gradient, for every variant."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import CROSS_GAINS, LENGTH, called, label, nudged, one_switch, tiny, tokens, traits
from transformer.model import build
from transformer.model.attention_backends import BACKENDS, reference_attention
from transformer.model.attention_weights import WEIGHTS
from transformer.model.masks import Mask
from transformer.model.taps import replace


def influence(overrides: dict, moved: bool = False) -> np.ndarray:
    """[t, s]: the largest |d loss[t] / d embedding[s]| of the model at its initial weights; `moved`: none of them
    zero."""
    config = tiny(overrides)
    model, window = nudged(build(config)) if moved else build(config), tokens(2, LENGTH + 1)

    def losses_T(shift_TD):
        logits_BTV = replace(called(model, config), embedding=lambda x: x + shift_TD[None])(window[:, :-1])
        log_p_TV = jax.nn.log_softmax(logits_BTV[0])
        return -log_p_TV[jnp.arange(LENGTH), window[0, 1:] % logits_BTV.shape[-1]]

    _, pull_back = jax.vjp(losses_T, jnp.zeros((LENGTH, config.model.d_model)))
    (gradients_tsD,) = jax.vmap(lambda d_T: pull_back(d_T))(jnp.eye(LENGTH))  # JAX would print a bare pull_back whole
    return np.abs(gradients_tsD).max(axis=-1)


def check_no_future(influence_TS: np.ndarray) -> None:
    """Exactly nothing comes from the future."""
    future = np.triu(np.ones_like(influence_TS, bool), k=1)
    assert np.all(influence_TS[future] == 0.0), f"the future leaks:\n{influence_TS}"


def check_causal(influence_TS: np.ndarray) -> None:
    """Nothing comes from the future, and something from every token up to the present."""
    check_no_future(influence_TS)
    past = np.tri(len(influence_TS), dtype=bool)
    assert np.all(influence_TS[past] > 0.0), f"the past is lost:\n{influence_TS}"


SEES_THE_FUTURE = [{"model.attention.mask": "none"}, {"model.family": "encoder"}, {"model.family": "prefix_decoder"}]
BY_TOKEN = [o for o in one_switch("model.") if "per_row" not in traits(o)]
# Traits of entries whose queries see no longer all of the past, at least at the initial weights.
SEES_LESS = {"one_key_per_query", "identity_at_init", "sparse"}


def sees_less(overrides: dict) -> bool:
    kind = overrides.get("model.attention.weights", "softmax")
    return bool(WEIGHTS[kind].traits & SEES_LESS)


@pytest.mark.parametrize("overrides", [{}, *BY_TOKEN], ids=label)
def test_causal_by_gradient(overrides):
    if "silent_branches" in traits(overrides):  # tokens do not see each other before the first step
        if not overrides.keys() & {"model.residual.ffn.branch_gain", CROSS_GAINS + "branch_gain"}:  # attention speaks
            with pytest.raises(AssertionError, match="the past is lost"):
                check_causal(influence(overrides))
        check_causal(influence(overrides, moved=True))
    elif overrides in SEES_THE_FUTURE:
        with pytest.raises(AssertionError, match="the future leaks"):
            check_causal(influence(overrides))
    elif "tokens_apart" in traits(overrides) or sees_less(overrides):
        with pytest.raises(AssertionError, match="the past is lost"):
            check_causal(influence(overrides))
    else:
        check_causal(influence(overrides))


def test_the_check_notices_a_lost_past():
    lost = {"model.residual.attention.branch_gain": 0.0}  # tokens no longer see each other
    with pytest.raises(AssertionError, match="the past is lost"):
        check_causal(influence(lost))


def test_the_check_notices_a_back_end_that_forgets_the_mask(monkeypatch):
    def forgetful(call):
        return reference_attention(dataclasses.replace(call, mask=Mask(causal=False)))

    monkeypatch.setitem(BACKENDS._entries, "reference", dataclasses.replace(BACKENDS["reference"], build=forgetful))
    found = influence({})
    with pytest.raises(AssertionError, match="the future leaks"):
        check_no_future(found)
    with pytest.raises(AssertionError, match="the future leaks"):
        check_causal(found)
