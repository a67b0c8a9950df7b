"""Exact claims of residual connections and of where norms stand, each with a sabotage that it must notice."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.claims.layers import D, T, V, config, context, model, rms, stream, through_blocks, tokens
from transformer import replace as replace_fields
from transformer.model.taps import capture, replace
from transformer.training.step import Program

BOTH = ("attention", "ffn")
# Kernels that keep the variance of what they read, and a stream of unit variance to read.
LECUN = {"init__scheme": "lecun", "init__std": 0.02, "embedding__scale": 0.0}
UNIT = {"d_model": 64, "attention__num_heads": 4, **LECUN}
NO_SKIP = {f"residual__{part}__skip_gain": 0.0 for part in BOTH}


def edit_sublayers(made, edit):
    """The model with what every sublayer writes replaced."""
    names = [f"blocks.{i}.{part}.output" for i in range(len(made.blocks)) for part in BOTH]
    return replace(lambda x: through_blocks(made, x), **dict.fromkeys(names, edit))


# --- The path along the skips ------------------------------------------------------------------------------------


def check_identity_jacobian(placement: str, edit, **overrides: Any) -> None:
    stack = edit_sublayers(model(norm__placement=placement, **overrides), edit)
    jacobian = jax.jit(jax.jacobian(lambda x: stack(x).ravel()))(stream()).reshape(T * D, T * D)
    assert np.array_equal(jacobian, np.eye(T * D)), "not the identity"


class TestResidualGradientIdentity:
    claim = "residual_gradient_identity"

    @pytest.mark.parametrize("edit", [jnp.zeros_like, jax.lax.stop_gradient], ids=["zeroed", "stopped"])
    def test_holds(self, edit):
        check_identity_jacobian("pre", edit)
        with pytest.raises(AssertionError, match="not the identity"):  # the claim is one about pre-norm stacks
            check_identity_jacobian("post", edit)

    def test_sabotage(self):
        with pytest.raises(AssertionError, match="not the identity"):
            check_identity_jacobian("pre", jnp.zeros_like, residual__ffn__skip_gain=0.9)
        with pytest.raises(AssertionError, match="not the identity"):
            check_identity_jacobian("pre", lambda x: x)


def changes_when_silent(placement: str, layers: int = 4) -> list[float]:
    """Relative change of the stream in each block with silent sublayers; every block is given a stream of its own,
    since a second norm right after a first one has nothing left to do."""
    made = model(norm__placement=placement, num_layers=layers)
    changes = []
    for i, block in enumerate(made.blocks):
        x = 3 * stream(i) + 1
        silent = replace(lambda x: block(x, context()), **{f"{part}.output": jnp.zeros_like for part in BOTH})  # noqa: B023
        changes.append(rms(silent(x) - x) / rms(x))
    return changes


def check_swapped(skips_the_norm: list[float], goes_through_it: list[float]) -> None:
    assert max(skips_the_norm) == 0.0, skips_the_norm
    assert min(goes_through_it) > 0.3, goes_through_it


class TestPostlnMechanismSeed3:
    claim = "postln_mechanism_seed3"

    def test_refuted(self):
        """The description fits pre-norm: there the stream passes by every norm, in post-norm it goes through each."""
        check_swapped(changes_when_silent("pre"), changes_when_silent("post"))

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_swapped(changes_when_silent("post"), changes_when_silent("pre"))


def check_additive(placement: str) -> None:
    """The last stream, and the logits, as sums over the embedding and what each sublayer wrote."""
    made = model(norm__placement=placement, norm__final="always", num_layers=3)
    logits, seen = capture(made)(tokens())
    parts = [seen["embedding"], *(seen[f"blocks.{i}.{part}.output"] for i in range(3) for part in BOTH)]
    last = np.asarray(seen["blocks.2.residual"])
    np.testing.assert_allclose(sum(map(np.asarray, parts)), last, atol=1e-4)
    scale = np.sqrt(last.var(-1, keepdims=True) + made.final_norm.epsilon)  # the final norm's, frozen
    directions = np.asarray(made.embedding.table.get_value()).T
    attributed = [(x - x.mean(-1, keepdims=True)) / scale @ directions for x in map(np.asarray, parts)]
    np.testing.assert_allclose(sum(attributed), logits, atol=1e-3)
    assert max(rms(x) for x in attributed) > 0.1


class TestResidualStreamAdditive:
    claim = "residual_stream_additive"

    def test_holds(self):
        check_additive("pre")

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_additive("post")


# --- The network at its initial weights --------------------------------------------------------------------------


def distances(mask: str, **overrides: Any) -> list[float]:
    """Relative distance of the tokens from their mean after each of eight layers."""
    length = 32
    made = model(num_layers=8, attention__mask=mask, **UNIT, **overrides)
    x, where, found = stream(0, 1, length, 64), context(mask != "none", length=length), []
    for layer, block in enumerate(made.blocks):
        x = block(x, where.in_layer(layer))
        centred = np.asarray(x[0] - x[0].mean(axis=0), np.float64)
        found.append(float(np.linalg.norm(centred) / np.linalg.norm(x[0])))
    return found


ATTENTION_ALONE = {"layers": "attention", "norm__kind": "none"}


def check_collapses(alone: list[float], with_help: list[float]) -> None:
    assert alone[-1] < 0.1 * with_help[-1], f"{alone} against {with_help}"
    assert with_help[-1] > 0.3, with_help


class TestRankCollapse:
    claim = "rank_collapse"

    @pytest.mark.parametrize("mask", ["none", "causal"])
    def test_holds(self, mask):
        alone = distances(mask, **ATTENTION_ALONE, **NO_SKIP)
        check_collapses(alone, distances(mask, **ATTENTION_ALONE))
        check_collapses(alone, distances(mask))  # the full pre-norm block
        # Feed-forward layers without skips do not help: that half of the statement fails.
        assert distances(mask, norm__kind="none", **NO_SKIP)[-1] < 0.1

    def test_sabotage(self):
        with_skip = distances("none", **ATTENTION_ALONE)
        with pytest.raises(AssertionError):
            check_collapses(with_skip, with_skip)


def shares_written(**overrides: Any) -> tuple[float, float]:
    """The largest write relative to its stream, and the cosine between first and last stream."""
    layers = 12
    made = model(d_model=128, num_layers=layers, attention__num_heads=2, **overrides)
    _, seen = capture(made)(tokens(length=16))
    at, ratios = seen["embedding"], []
    for i in range(layers):
        for part, after in zip(BOTH, ("residual_mid", "residual"), strict=True):
            ratios.append(rms(seen[f"blocks.{i}.{part}.output"]) / rms(at))
            at = seen[f"blocks.{i}.{after}"]
    first, last = np.asarray(seen["embedding"]).ravel(), np.asarray(at).ravel()
    return max(ratios), float(first @ last / np.linalg.norm(first) / np.linalg.norm(last))


def check_near_identity(**overrides: Any) -> None:
    largest, cosine = shares_written(**overrides)
    assert largest < 0.15 and cosine > 0.8, (largest, cosine)


USUAL = {
    "GPT-2": {"init__std": 0.02},
    "0.02 throughout": {"init__scheme": "plain", "init__std": 0.02},
    "LeCun, unit embeddings": LECUN,
}
MADE_FOR_IT = {
    "LeCun over depth, unit embeddings": {**LECUN, "init__scheme": "lecun_depth"},
    "GPT-2, unit embeddings": {"init__std": 0.02, "embedding__scale": 50.0},
    "zeroed outputs": {"init__scheme": "zero"},
    "ReZero": {f"residual__{part}__branch_gain": "learned_zero" for part in BOTH},
}


class TestResidualNearIdentityInit:
    claim = "residual_near_identity_init"

    @pytest.mark.parametrize("init", USUAL)
    def test_refuted(self, init):
        """Under the usual initialisations the first sublayers write about as much as the stream already holds, and
        little of the embedding's direction is left at the end."""
        largest, cosine = shares_written(**USUAL[init])
        assert largest > 0.4 and cosine < 0.5, (largest, cosine)

    @pytest.mark.parametrize("init", MADE_FOR_IT)
    def test_holds_where_it_was_made_to(self, init):
        check_near_identity(**MADE_FOR_IT[init])

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_near_identity(**USUAL["GPT-2"])


def stream_sizes(made, x: jax.Array) -> list[float]:
    """Root mean square of the stream after each block."""
    _, seen = capture(made)(x)
    return [rms(seen[f"blocks.{i}.residual"]) for i in range(len(made.blocks))]


def check_grows(sizes: list[float]) -> None:
    quarters = [np.mean(part) for part in np.array_split(sizes, 4)]
    assert np.all(np.diff(quarters) > 0), sizes
    assert sizes[-1] > 1.2 * sizes[0], sizes


class TestPrelnStreamGrows:
    claim = "preln_stream_grows"

    def test_holds_at_first(self):
        sizes = stream_sizes(model(num_layers=24, **UNIT), tokens())
        check_grows(sizes)
        depth = np.arange(1, 25)
        slope = np.polyfit(np.log(depth), np.log(sizes), 1)[0]
        assert 0.3 < slope < 0.7, slope  # like the square root of depth

    def test_holds_after_training(self):
        recipe = {"train.steps": 60, "train.batch_size": 8, "optimizer.learning_rate": 0.01}
        settings = replace_fields(config(num_layers=4, init__std=0.1), recipe)
        program = Program(settings, V, np.ones(V, np.int32))
        state, hyper = program.init(0), program.hyperparameters(settings)
        corpus = jnp.asarray(np.arange(400) * 5 % V, jnp.uint8)  # the next token follows from this one
        starts = np.random.default_rng(0).integers(0, 390, (program.max_steps_per_call, 8)).astype(np.int32)
        state, metrics = program.train_steps(state, corpus, starts, jnp.int32(0), jnp.int32(60), hyper)
        assert metrics["loss"][59] < 0.5 * metrics["loss"][0]
        check_grows(stream_sizes(program.model(state), tokens()))

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_grows(stream_sizes(model(num_layers=8, norm__placement="post", **UNIT), tokens()))


# --- Gradients and perturbations by placement --------------------------------------------------------------------

DEPTHS = (2, 6, 16)


MATRICES = {"attention": ("query", "key", "value", "output"), "ffn": ("up", "down")}


@functools.cache
def gradients(layers: int, **overrides: Any) -> dict[str, tuple[float, float]]:
    """Gradient norms at the initial weights in the first and the last layer, by matrix."""
    made = model(num_layers=layers, embedding__tie=False, **UNIT, **overrides)
    structure, params = nnx.split(made)
    params = nnx.to_pure_dict(params)
    window = tokens(batch=2, length=17)

    def loss(params):
        log_p = jax.nn.log_softmax(nnx.merge(structure, params)(window[:, :-1]))
        return -jnp.take_along_axis(log_p, window[:, 1:, None], axis=-1).mean()

    blocks = jax.grad(loss)(params)["blocks"]

    def ends(part: str, kernel: str) -> tuple[float, float]:
        first, last = (float(jnp.linalg.norm(blocks[i][part]["branch"][kernel]["kernel"])) for i in (0, layers - 1))
        return first, last

    return {kernel: ends(part, kernel) for part, kernels in MATRICES.items() for kernel in kernels}


def last_gradients(placement: str) -> list[float]:
    """Of the feed-forward network in the last layer, by depth."""
    return [gradients(layers, norm__placement=placement)["down"][1] for layers in DEPTHS]


def check_placements(pre: list[float], post: list[float]) -> None:
    assert pre[0] > pre[1] > pre[2] and pre[-1] < 0.7 * pre[0], pre
    assert min(post) >= post[0], post


class TestGradientScaleByPlacement:
    claim = "gradient_scale_by_placement"

    def test_holds(self):
        check_placements(last_gradients("pre"), last_gradients("post"))
        first, last = gradients(DEPTHS[-1], norm__placement="pre")["down"]
        assert first > 2 * last  # early layers of a pre-norm stack get the larger ones

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_placements(last_gradients("post"), last_gradients("pre"))


def check_vanishes(ratios: list[float]) -> None:
    """First over last, falling by a constant factor or faster with each layer added: 5 percent a layer is the least."""
    for (shallow, a), (deep, b) in itertools.pairwise(zip(DEPTHS, ratios, strict=True)):
        assert b < a * 0.95 ** (deep - shallow), ratios


class TestPostlnGradientProductVanishes:
    claim = "postln_gradient_product_vanishes"

    @pytest.mark.parametrize("kernel", ["down", "query"])
    def test_refuted(self, kernel):
        """Measured here: in the first layer of a post-norm stack gradients are no smaller than in the last. What
        fades with depth is the query gradient of the *last* layers, whose tokens have become alike."""
        ends = [gradients(layers, norm__placement="post")[kernel] for layers in DEPTHS]
        ratios = [first / last for first, last in ends]
        assert min(ratios) > 0.5, ratios
        with pytest.raises(AssertionError):
            check_vanishes(ratios)

    def test_sabotage(self):
        check_vanishes([0.9**layers for layers in DEPTHS])
        with pytest.raises(AssertionError):
            check_vanishes([1.0, 0.99, 0.98])


NO_NORM = {"norm__kind": "none"}
LOOKING = ("query", "key")  # the matrices whose gradients pass through the weights of attention
THE_OTHERS = tuple(kernel for kernels in MATRICES.values() for kernel in kernels if kernel not in LOOKING)


def loses(overrides: dict[str, Any], kernels: tuple[str, ...]) -> list[float]:
    """What is left of each matrix's gradient in the first layer of the deepest stack, against the shallowest."""
    return [gradients(DEPTHS[-1], **overrides)[k][0] / gradients(DEPTHS[0], **overrides)[k][0] for k in kernels]


def check_fade(left: list[float]) -> None:
    assert max(left) < 0.01, left


def check_stay(left: list[float]) -> None:
    assert min(left) > 0.5, left


class TestGradientsFadeWithoutNorms:
    """The first half: where there are no norms either."""

    claim = "residual_prevents_vanishing_gradient"

    def test_holds(self):
        check_fade(loses({**NO_SKIP, **NO_NORM}, (*LOOKING, *THE_OTHERS)))
        check_stay(loses({}, (*LOOKING, *THE_OTHERS)))

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_fade(loses(NO_NORM, THE_OTHERS))


class TestGradientsStayWithNorms:
    """The second half: a pre-norm stack that only loses its skips."""

    claim = "residual_prevents_vanishing_gradient"

    def test_refuted(self):
        """With a norm in front of each sublayer, values, outputs and feed-forward layers of the first layer keep their
        gradient at any depth without skips; queries and keys alone lose theirs, because all tokens have become alike:
        what goes wrong is rank collapse."""
        check_stay(loses(NO_SKIP, THE_OTHERS))
        check_fade(loses(NO_SKIP, LOOKING))
        assert distances("causal", **NO_SKIP)[-1] < 0.1 < 0.3 < distances("causal")[-1]

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_stay(loses({**NO_SKIP, **NO_NORM}, THE_OTHERS))
        with pytest.raises(AssertionError):
            check_fade(loses({}, LOOKING))


AMPLIFICATION_DEPTHS = (1, 2, 4, 8, 16)


def output_changes(placement: str) -> np.ndarray:
    """Squared change of the normalised output when every kernel moves by one percent, by depth, against one layer."""
    seeds, length, rng, changes = 8, 16, np.random.default_rng(0), []
    x = stream(0, seeds * 2, length, UNIT["d_model"]).reshape(seeds, 2, length, -1)

    def moved(kernels):
        step = 0.01 * np.std(kernels) * rng.normal(size=kernels.shape)
        return kernels if kernels.ndim < 3 else kernels + step.astype(np.float32)

    for layers in AMPLIFICATION_DEPTHS:
        models = [model(seed, norm__placement=placement, num_layers=layers, **UNIT) for seed in range(seeds)]
        structure = nnx.split(models[0])[0]
        params = jax.tree.map(lambda *p: np.stack(p), *(nnx.to_pure_dict(nnx.split(m)[1]) for m in models))

        def of_one(params, x):
            return through_blocks(nnx.merge(structure, params), x, context(length=length))  # noqa: B023

        def output(params):
            y = np.asarray(jax.vmap(of_one)(params, x), np.float64)
            return (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True)

        changes.append(np.square(output(jax.tree.map(moved, params)) - output(params)).mean())
    return np.array(changes) / changes[0]


def misfit(x: np.ndarray, y: np.ndarray) -> float:
    """What a straight line leaves unexplained."""
    return float(np.square(y - np.polyval(np.polyfit(x, y, 1), x)).sum())


def check_amplified(pre: np.ndarray, post: np.ndarray) -> None:
    depth = np.array(AMPLIFICATION_DEPTHS, float)
    assert misfit(depth, post) < misfit(np.log(depth), post), f"post-norm is not linear in depth: {post}"
    assert misfit(np.log(depth), pre) < misfit(depth, pre), f"pre-norm is not logarithmic in depth: {pre}"
    assert post[-1] > 2 * pre[-1], (pre, post)


class TestPostlnAmplifiesPerturbation:
    claim = "postln_amplifies_perturbation"

    def test_holds_and_notices_an_exchange(self):
        pre, post = output_changes("pre"), output_changes("post")
        check_amplified(pre, post)
        with pytest.raises(AssertionError):
            check_amplified(post, pre)

    def test_sabotage(self):
        line = np.array(AMPLIFICATION_DEPTHS, float)
        check_amplified(1 + np.log(line), line)
        with pytest.raises(AssertionError, match="post-norm is not linear"):
            check_amplified(1 + np.log(line), 1 + np.log(line))
        with pytest.raises(AssertionError, match="pre-norm is not logarithmic"):
            check_amplified(line, 3 * line)
