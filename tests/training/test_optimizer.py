"""AdamW: against the formula, against optax, and the decay where it belongs and nowhere else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiny import declared, named, tiny
from transformer.model.initialization import ROLES
from transformer.training import optimizer as optimizer_module
from transformer.training.optimizer import Hyperparameters, Optimizer, decay_mask
from transformer.training.step import Program

# Decided by what a parameter is for; never by its number of dimensions or its name.
DECAYS = {
    "matrix": True,
    "value": True,
    "hidden": True,
    "unembedding": True,
    "output": True,
    "embedding": True,
    "position": True,
    "gain": False,
    "bias": False,
    "residual_gain": False,
    "position_bias": False,
}
EVERY_ROLE = {
    "model.num_layers": 1,
    "model.position.kind": "learned",
    "model.norm.bias": True,
    "model.attention.bias": True,
    "model.ffn.bias": True,
    "model.embedding.tie": False,
    "model.residual.ffn.branch_gain": "learned_zero",
}
RATE, DECAY = 0.125, 0.5
# One parameter of each role, without zeros, so that decay shows on every one.
ONE_OF_EACH = {
    role: np.random.default_rng(i).uniform(0.5, 1, (2, 3)).astype(np.float32) for i, role in enumerate(sorted(ROLES))
}


def optimizer(overrides: dict | None = None) -> Optimizer:
    return Optimizer(tiny(overrides), {role: role for role in ROLES})


def hyper(rate: float = RATE, decay: float = DECAY) -> Hyperparameters:
    return Hyperparameters(jnp.float32(rate), jnp.float32(decay), jnp.uint32(0), jnp.uint32(0))


# --- Which parameters decay --------------------------------------------------------------------------------------


def test_every_role_has_an_answer():
    assert set(DECAYS) == ROLES
    assert decay_mask({role: role for role in ROLES}) == DECAYS
    found = {role for _, role in declared(tiny(EVERY_ROLE)).values()}
    assert found | {role for _, role in declared(tiny({"model.position.kind": "t5"})).values()} == ROLES


def test_roles_of_every_parameter():
    attention, ffn = "blocks.0.attention", "blocks.0.ffn"
    golden = {
        "embedding.table": "embedding",
        "position.table": "position",
        "final_norm.gain": "gain",
        "final_norm.bias": "bias",
        "unembedding.kernel": "unembedding",
        **{f"{attention}.branch.{x}.kernel": "matrix" for x in ("query", "key")},
        f"{attention}.branch.value.kernel": "value",
        **{f"{attention}.branch.{x}.bias": "bias" for x in ("query", "key", "value", "output")},
        f"{attention}.branch.output.kernel": "output",
        f"{ffn}.branch.up.kernel": "hidden",
        f"{ffn}.branch.down.kernel": "output",
        **{f"{ffn}.branch.{x}.bias": "bias" for x in ("up", "down")},
        f"{ffn}.branch_gain.gain": "residual_gain",
        **{f"{x}.in_norm.{part}": part for x in (attention, ffn) for part in ("gain", "bias")},
    }
    assert {name: role for name, (_, role) in declared(tiny(EVERY_ROLE)).items()} == golden


def check_decay(made: Optimizer, params: Any, roles: dict[str, str], rate: float, decay: float) -> None:
    """With zero gradients, a step moves exactly the decaying leaves, each to p * (1 - rate * decay)."""
    zeros, last_of_warmup = jax.tree.map(jnp.zeros_like, params), jnp.int32(1)
    update = jax.jit(made.update)
    moved, _, used = update(zeros, made.init(params), params, last_of_warmup, hyper(rate, decay))
    assert used == rate
    before, after = named(params), named(moved)
    assert before.keys() == roles.keys()
    for name, role in roles.items():
        factor = 1 - rate * decay if DECAYS[role] else 1.0
        np.testing.assert_allclose(after[name], before[name] * factor, rtol=1e-6, err_msg=name)
        assert np.array_equal(after[name], before[name]) == (not DECAYS[role] or rate * decay == 0), name


@pytest.mark.parametrize(("rate", "decay"), [(RATE, DECAY), (RATE, 0.0), (0.0, DECAY)])
def test_a_step_without_gradient_decays_and_nothing_else(rate, decay):
    check_decay(optimizer(), ONE_OF_EACH, {role: role for role in ROLES}, rate, decay)


def test_a_step_without_gradient_on_a_model():
    config = tiny(EVERY_ROLE)
    made = Program(config, 11, np.ones(11, np.int32))
    params = jax.tree.map(lambda p: np.asarray(p) + np.float32(0.5), made.init(0).params)
    check_decay(made.optimizer, params, {n: role for n, (_, role) in declared(config).items()}, RATE, DECAY)


@pytest.mark.parametrize("wrong", [frozenset(), ROLES, frozenset({"matrix"}), frozenset(DECAYS) - {"bias"}])
def test_the_check_notices_a_wrong_mask(monkeypatch, wrong):
    monkeypatch.setattr(optimizer_module, "DECAYED_ROLES", wrong)
    with pytest.raises(AssertionError):
        check_decay(optimizer(), ONE_OF_EACH, {role: role for role in ROLES}, RATE, DECAY)


# --- The update --------------------------------------------------------------------------------------------------


def gradients(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {role: (rng.normal(size=(2, 3)) * 0.3).astype(np.float32) for role in sorted(ROLES)}


def check_against_optax(made: Optimizer, clip: float = 1.0, **settings) -> None:
    """Six steps, warm-up included, on the same gradients."""
    settings = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "mask": lambda params: DECAYS, **settings}
    theirs = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.adamw(lambda count: RATE * made.schedule(count), weight_decay=DECAY, **settings),
    )
    update, their_update = jax.jit(made.update), jax.jit(theirs.update)
    ours = other = ONE_OF_EACH
    state, other_state = made.init(ours), theirs.init(other)
    for step in range(6):
        ours, state, _ = update(gradients(step), state, ours, jnp.int32(step), hyper())
        updates, other_state = their_update(gradients(step), other_state, other)
        other = jax.tree.map(np.add, other, updates)
    for name in ours:
        np.testing.assert_allclose(ours[name], other[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_optax_adamw_agrees():
    check_against_optax(optimizer())
    check_against_optax(optimizer({"optimizer.clip": 0.0}), clip=0.0)
    others = {"beta1": 0.7, "beta2": 0.8, "epsilon": 0.1, "clip": 0.5}
    changed = optimizer({f"optimizer.{name}": value for name, value in others.items()})
    check_against_optax(changed, b1=0.7, b2=0.8, eps=0.1, clip=0.5)


@pytest.mark.parametrize("other", [{"b1": 0.8}, {"b2": 0.99}, {"eps": 1e-2}, {"mask": None}], ids=str)
def test_the_check_notices_other_settings(other):
    with pytest.raises(AssertionError):
        check_against_optax(optimizer(), **other)


def test_the_check_notices_a_missing_clip():
    with pytest.raises(AssertionError):  # Adam ignores the scale of all gradients, but for epsilon
        check_against_optax(optimizer({"optimizer.epsilon": 0.1, "optimizer.clip": 0.0}), eps=0.1)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_state_is_that_of_optax(clip, dtype):
    """It is filled with zeros without asking optax for numbers."""
    made, params = optimizer({"optimizer.clip": clip}), jax.tree.map(lambda p: jnp.asarray(p, dtype), ONE_OF_EACH)
    ours, theirs = made.init(params), made.transform.init(params)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert jax.tree.map(jax.typeof, ours) == jax.tree.map(jax.typeof, theirs)


def test_nothing_is_compiled_for_a_state():
    """A start-up would compile for every shape of the moments and every hyperparameter, some tenths of a second."""
    config, compiled = tiny({"model.d_model": 24}), []  # shapes no other test has compiled for

    def listen(event: str, seconds: float, **_: Any) -> None:
        compiled.extend([event] * event.endswith("backend_compile_duration"))

    program = Program(config, 29, np.ones(29))
    params = program.init(0).params
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        program.optimizer.init(params), program.hyperparameters(config)
        assert not compiled
        program.optimizer.transform.init(params)
        assert compiled, "no compilation was ever heard of"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_first_step_by_hand():
    """After one step of bias-corrected Adam every element has moved by the rate, against its gradient's sign."""
    made = optimizer({"optimizer.clip": 0.0})
    update = jax.jit(made.update)
    moved, _, _ = update(gradients(0), made.init(ONE_OF_EACH), ONE_OF_EACH, jnp.int32(1), hyper(decay=0.0))
    for name, g in gradients(0).items():
        np.testing.assert_allclose(moved[name] - ONE_OF_EACH[name], -RATE * np.sign(g), rtol=1e-3, err_msg=name)
