"""AdamW: against the formula, against optax, and the decay where it belongs and nowhere else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiny import declared, named, tiny
from transformer.model.initialization import ROLES
from transformer.training import optimizer as optimizer_module
from transformer.training.optimizer import Hyperparameters, decay_mask
from transformer.training.step import Program

EVERY_ROLE = {
    "model.num_layers": 1,
    "model.position.kind": "learned",
    "model.norm.bias": True,
    "model.attention.bias": True,
    "model.ffn.bias": True,
    "model.embedding.tie": False,
    "model.residual.ffn.branch_gain": "learned_zero",
}
# Decided by what a parameter is for; never by its number of dimensions or its name.
DECAYS = {
    "matrix": True,
    "output": True,
    "embedding": True,
    "position": True,
    "gain": False,
    "bias": False,
    "residual_gain": False,
}
RATE, DECAY = 0.125, 0.5


def program(overrides: dict | None = None) -> Program:
    return Program(tiny({**EVERY_ROLE, **(overrides or {})}), 11, np.ones(11, np.int32))


def hyper(rate: float = RATE, decay: float = DECAY) -> Hyperparameters:
    return Hyperparameters(jnp.float32(rate), jnp.float32(decay), jnp.uint32(0))


def nonzero(params):
    """Parameters without zeros, so that decay shows on every leaf."""
    return jax.tree.map(lambda p: p + 0.5, params)


# --- Which parameters decay --------------------------------------------------------------------------------------


def test_every_role_has_an_answer():
    assert set(DECAYS) == ROLES
    assert {role for _, role in declared(tiny(EVERY_ROLE)).values()} == ROLES
    assert decay_mask({role: role for role in ROLES}) == DECAYS


def test_roles_of_the_default_model():
    roles = {name: role for name, (_, role) in declared(tiny(EVERY_ROLE)).items()}
    golden = {
        "embedding.table": "embedding",
        "position.table": "position",
        "final_norm.gain": "gain",
        "final_norm.bias": "bias",
        "unembedding.kernel": "matrix",
    }
    attention, ffn = "blocks.0.attention", "blocks.0.ffn"
    golden |= {f"{attention}.branch.{x}.kernel": "matrix" for x in ("query", "key", "value")}
    golden |= {f"{attention}.branch.{x}.bias": "bias" for x in ("query", "key", "value", "output")}
    golden |= {f"{attention}.branch.output.kernel": "output", f"{ffn}.branch.down.kernel": "output"}
    golden |= {f"{ffn}.branch.up.kernel": "matrix", f"{ffn}.branch_gain.gain": "residual_gain"}
    golden |= {f"{ffn}.branch.{x}.bias": "bias" for x in ("up", "down")}
    golden |= {f"{x}.in_norm.gain": "gain" for x in (attention, ffn)}
    golden |= {f"{x}.in_norm.bias": "bias" for x in (attention, ffn)}
    assert roles == golden


def check_decay(made: Program, rate: float, decay: float) -> None:
    """With zero gradients, a step moves exactly the decaying leaves, each to p * (1 - rate * decay)."""
    params = nonzero(made.init(0).params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    last_of_warmup = jnp.int32(1)
    moved, _, used = jax.jit(made.optimizer.update)(
        zeros, made.optimizer.init(params), params, last_of_warmup, hyper(rate, decay)
    )
    assert used == rate
    before, after = named(params), named(moved)
    for name, (_, role) in declared(made.config).items():
        factor = 1 - rate * decay if DECAYS[role] else 1.0
        np.testing.assert_allclose(after[name], before[name] * factor, rtol=1e-6, err_msg=name)
        assert np.array_equal(after[name], before[name]) == (not DECAYS[role] or rate * decay == 0), name


@pytest.mark.parametrize(("rate", "decay"), [(RATE, DECAY), (RATE, 0.0), (0.0, DECAY)])
def test_a_step_without_gradient_decays_and_nothing_else(rate, decay):
    check_decay(program(), rate, decay)


def test_the_check_notices_a_wrong_mask(monkeypatch):
    for wrong in (frozenset(), ROLES, frozenset({"matrix"}), optimizer_module.DECAYED_ROLES | {"gain"}):
        monkeypatch.setattr(optimizer_module, "DECAYED_ROLES", wrong)
        with pytest.raises(AssertionError):
            check_decay(program(), RATE, DECAY)


def test_a_row_no_token_points_at_still_decays():
    """Decoupled decay acts on every row of the table, seen in the batch or not."""
    made = program()
    state = made.init(0)
    window = np.zeros((4, 9), np.int32)  # only token 0 is ever read
    table = np.asarray(state.params["embedding"]["table"])
    step = jax.jit(made.train_step)
    after, _ = step(state, window, jnp.int32(1), hyper())
    np.testing.assert_allclose(after.params["embedding"]["table"][5], table[5] * (1 - RATE * DECAY), rtol=1e-5)


# --- The update --------------------------------------------------------------------------------------------------


def gradients(params, step: int):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.3, p.dtype), params)


def check_against_optax(made: Program, theirs: optax.GradientTransformation) -> None:
    """Six steps, warm-up included, on the same gradients."""
    ours = other = nonzero(made.init(0).params)
    state, other_state = made.optimizer.init(ours), theirs.init(other)
    update, their_update = jax.jit(made.optimizer.update), jax.jit(theirs.update)
    for step in range(6):
        grads = gradients(ours, step)
        ours, state, _ = update(grads, state, ours, jnp.int32(step), hyper())
        updates, other_state = their_update(grads, other_state, other)
        other = optax.apply_updates(other, updates)
    for name, p in named(ours).items():
        np.testing.assert_allclose(p, named(other)[name], rtol=2e-5, atol=2e-6, err_msg=name)


def adamw(made: Program, clip: float = 1.0, **changes) -> optax.GradientTransformation:
    settings = {
        "learning_rate": lambda count: RATE * made.optimizer.schedule(count),
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": DECAY,
        "mask": lambda params: jax.tree.map(lambda role: DECAYS[role], made.roles),
    }
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(), optax.adamw(**{**settings, **changes})
    )


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_optax_adamw_agrees(clip):
    made = program({"optimizer.clip": clip})
    check_against_optax(made, adamw(made, clip))


def test_the_check_notices_other_settings():
    made = program()
    for theirs in (
        adamw(made, b1=0.8),
        adamw(made, b2=0.99),
        adamw(made, eps=1e-2),
        adamw(made, mask=None),
        adamw(made, clip=0.0, eps=1e-2),
    ):
        with pytest.raises(AssertionError):
            check_against_optax(made, theirs)


@pytest.mark.parametrize("field", ["beta1", "beta2", "epsilon", "clip"])
def test_every_setting_reaches_the_update(field):
    def moved(overrides):
        made = program(overrides)
        params = made.init(0).params
        state, update = made.optimizer.init(params), jax.jit(made.optimizer.update)
        for step in range(3):
            params, state, _ = update(gradients(params, step), state, params, jnp.int32(step), hyper())
        return np.asarray(params["embedding"]["table"])

    value = {"beta1": 0.5, "beta2": 0.6, "epsilon": 0.1, "clip": 0.0}[field]
    assert not np.array_equal(moved({}), moved({f"optimizer.{field}": value}))


def test_first_step_by_hand():
    """After one step of bias-corrected Adam every element has moved by the rate, against its gradient's sign."""
    made = program({"optimizer.clip": 0.0})
    params = made.init(0).params
    grads = gradients(params, 0)
    moved, _, _ = jax.jit(made.optimizer.update)(
        grads, made.optimizer.init(params), params, jnp.int32(1), hyper(decay=0.0)
    )
    for name, g in named(grads).items():
        step = named(moved)[name] - named(params)[name]
        np.testing.assert_allclose(step, -RATE * np.sign(g), rtol=1e-3, err_msg=name)
