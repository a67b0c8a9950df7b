"""Exact claims about positions, each with a sabotage that it must notice.

A claim that is true in one reading and false in another has one class for each.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer import Config, build, replace
from transformer.errors import UserError
from transformer.model.positions import POSITIONS, LearnedPosition, NoPosition, alibi_slopes, sinusoidal_code
from transformer.model.taps import capture

V, T = 17, 6
TINY = replace(
    Config(),
    {
        "model.d_model": 16,
        "model.num_layers": 2,
        "model.attention.num_heads": 2,
        "model.init.std": 0.5,  # large enough that untrained attention decides something
        "data.sequence_length": 8,
    },
)
BIDIRECTIONAL = {"model.attention.mask": "none"}


def tiny(position: str, **overrides):
    return build(replace(TINY, {"model.position.kind": position, **overrides}), V)


def features(model, window) -> np.ndarray:
    """The last state of the residual stream after the final norm, [T, D]."""
    return np.asarray(capture(model, "final")(jnp.asarray(window, jnp.int32)[None])[1]["final"][0])


WINDOW = np.array([3, 14, 1, 5, 9, 2])
SHUFFLE = np.array([4, 0, 3, 5, 1, 2])


# --- Without positions -------------------------------------------------------------------------------------------


def equivariance_error(model) -> float:
    """Of a whole stack: attention, feed-forward, norms and residuals."""
    return float(np.abs(features(model, WINDOW[SHUFFLE]) - features(model, WINDOW)[SHUFFLE]).max())


class TestPermutationEquivariance:
    claim = "permutation_equivariance"

    def test_holds(self):
        assert equivariance_error(tiny("none", **BIDIRECTIONAL)) < 1e-5

    @pytest.mark.parametrize("kind", [kind for kind in POSITIONS if kind != "none"])
    def test_sabotage(self, kind):
        assert equivariance_error(tiny(kind, **BIDIRECTIONAL)) > 0.01

    def test_sabotage_by_the_causal_mask(self):
        assert equivariance_error(tiny("none")) > 0.1


def invariance_error(model) -> float:
    return float(np.abs(features(model, WINDOW[SHUFFLE]) - features(model, WINDOW)).max())


def pooled_error(model) -> float:
    return float(np.abs(features(model, WINDOW[SHUFFLE]).mean(0) - features(model, WINDOW).mean(0)).max())


class TestPermutationInvarianceWording:
    claim = "permutation_invariance_wording"

    def test_refuted(self):
        """Outputs move with their tokens, so each place holds another vector after a shuffle; only the mean stays."""
        model = tiny("none", **BIDIRECTIONAL)
        assert invariance_error(model) > 0.5
        assert pooled_error(model) < 1e-5

    def test_sabotage(self):
        """With a single distinct token there is nothing to tell apart, and the counter-example is gone."""
        model = tiny("none", **BIDIRECTIONAL)
        alike = np.full(T, 7)
        assert np.abs(features(model, alike[SHUFFLE]) - features(model, alike)).max() == 0
        assert pooled_error(tiny("rope", **BIDIRECTIONAL)) > 0.01


DOG_BITES_MAN, MAN_BITES_DOG = np.array([1, 2, 3]), np.array([3, 2, 1])


def sentence_difference(model, pooled: bool) -> float:
    """Of what a reader of the sentence is given: the mean over an encoder's outputs, or a decoder's state at an end
    mark after it."""
    sentences = [features(model, s if pooled else [*s, 0]) for s in (DOG_BITES_MAN, MAN_BITES_DOG)]
    read = [x.mean(0) if pooled else x[-1] for x in sentences]
    return float(np.abs(read[0] - read[1]).max())


class TestBagOfWordsInEncodersAndOneLayer:
    claim = "bag_of_words_without_pe"

    def test_holds(self):
        for layers in (1, 2, 4):
            assert sentence_difference(tiny("none", **BIDIRECTIONAL, **{"model.num_layers": layers}), True) < 1e-5
        assert sentence_difference(tiny("none", **{"model.num_layers": 1}), False) < 1e-5

    @pytest.mark.parametrize("kind", [kind for kind in POSITIONS if kind != "none"])
    def test_sabotage(self, kind):
        # ALiBi counts distance alike in both directions: it cannot tell a text from its mirror image.
        assert (sentence_difference(tiny(kind, **BIDIRECTIONAL), True) > 1e-3) == (kind != "alibi")
        assert sentence_difference(tiny(kind, **{"model.num_layers": 1}), False) > 1e-3


class TestBagOfWordsInDeepDecoders:
    claim = "bag_of_words_without_pe"

    def test_refuted(self):
        """From the second layer on a causal decoder tells the sentences apart: in its first layer the mask lets each
        token see only those before it, so the states that the second layer reads already depend on order."""
        for layers in (2, 3):
            assert sentence_difference(tiny("none", **{"model.num_layers": layers}), False) > 0.1

    def test_sabotage(self):
        assert sentence_difference(tiny("none", **BIDIRECTIONAL, **{"model.num_layers": 2}), False) < 1e-5


# --- Sinusoids ---------------------------------------------------------------------------------------------------

WIDTH = 128


def code(positions, width: int = WIDTH) -> np.ndarray:
    """The library's code in double precision: [positions, width]."""
    with jax.enable_x64(True):
        return np.asarray(sinusoidal_code(jnp.asarray(positions, jnp.float64), width))


def shift_matrix(k: float, width: int = WIDTH, base: float = 10_000.0) -> np.ndarray:
    """Turns the pair (sin, cos) of every frequency by k positions."""
    out = np.zeros((width, width))
    for i in range(0, width, 2):
        angle = k * base ** (-i / width)
        out[i : i + 2, i : i + 2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    return out


def shift_error(codes: np.ndarray, k: int) -> float:
    return float(np.abs(codes[:-k] @ shift_matrix(k).T - codes[k:]).max())


class TestSinusoidalLinearShift:
    claim = "sinusoidal_linear_shift"

    def test_holds(self):
        codes = code(np.arange(2049))
        assert codes.dtype == np.float64
        assert max(shift_error(codes, k) for k in (1, 2, 7, 100, 1024)) < 1e-10

    def test_sabotage(self):
        sines_only = np.repeat(code(np.arange(200))[:, ::2], 2, axis=1)
        assert shift_error(sines_only, 3) > 0.1


def similarity(distance: np.ndarray) -> np.ndarray:
    """Cosine of the codes of two positions that far apart; the same wherever they stand."""
    codes = code(np.arange(distance.max() + 1))
    return codes[distance] @ codes[0] / (WIDTH / 2)


class TestSinusoidalNeighboursSimilar:
    claim = "sinusoidal_neighbours_similar"

    def test_holds(self):
        """Close positions are similar, distant ones much less."""
        cosines = similarity(np.array([1, 5, 20, 100, 200]))
        np.testing.assert_allclose(cosines, [0.97, 0.74, 0.61, 0.48, 0.31], atol=0.005)

    def test_sabotage(self):
        shuffled = np.random.default_rng(0).permutation(201)
        assert np.abs(similarity(shuffled[[1, 5, 20, 100, 200]]) - [0.97, 0.74, 0.61, 0.48, 0.31]).max() > 0.1


class TestSinusoidalSimilarityFallsWithDistance:
    claim = "sinusoidal_neighbours_similar"

    def test_refuted(self):
        """Similarity does not fall with every step: from distance 11 to 12 it rises for the first time."""
        rises = np.flatnonzero(np.diff(similarity(np.arange(201))) > 0)
        assert rises[0] == 11

    def test_sabotage(self):
        """The slow half of the frequencies alone falls monotonically over this range: the fast ones make the rise."""
        codes = code(np.arange(201))[:, WIDTH // 2 :]
        assert (np.diff(codes @ codes[0]) < 0).all()


def smallest_distance(codes: np.ndarray) -> float:
    """Between any two rows. Distances depend on the difference of positions alone, so that of each row to the first
    covers every pair."""
    return float(np.linalg.norm(codes[1:] - codes[0], axis=1).min())


class TestSinusoidalUnique:
    claim = "sinusoidal_unique"

    def test_holds(self):
        codes = code(np.arange(10_001))
        smallest = smallest_distance(codes)
        print(f"smallest distance between two of 10,001 codes: {smallest:.3f}")
        assert smallest == pytest.approx(np.linalg.norm(codes[1] - codes[0])) and smallest > 1.0
        for i, j in ((5, 9), (3, 4000), (9000, 9001)):  # the shortcut: distance depends on the difference alone
            assert np.linalg.norm(codes[i] - codes[j]) == pytest.approx(np.linalg.norm(codes[j - i] - codes[0]))

    def test_sabotage(self):
        """A single frequency whose period is a whole number of positions repeats itself."""
        assert smallest_distance(np.exp(2j * np.pi * np.arange(100) / 25)[:, None].view(float)) < 1e-6


FINE = np.arange(0.0, 0.5, 0.01)  # positions so close that second differences are second derivatives


def distinct_frequencies(codes: np.ndarray) -> int:
    """Among the columns, read off x'' = -w^2 x, which holds for sine and cosine of frequency w alike."""
    second = (codes[2:] - 2 * codes[1:-1] + codes[:-2]) / (FINE[1] - FINE[0]) ** 2
    w = np.sort(np.sqrt(-(second * codes[1:-1]).sum(0) / (codes[1:-1] ** 2).sum(0)))
    return 1 + int((np.diff(w) > 1e-2 * w[1:]).sum())


class TestSinusoidalFrequenciesByPair:
    claim = "sinusoidal_frequencies"

    def test_holds(self):
        """Every pair of dimensions has a frequency of its own."""
        assert distinct_frequencies(code(FINE, 8)) == 4

    def test_sabotage(self):
        codes = code(FINE, 8)
        assert distinct_frequencies(np.concatenate([codes[:, :4], codes[:, :4]], axis=1)) == 2


class TestSinusoidalFrequenciesByDimension:
    claim = "sinusoidal_frequencies"

    def test_refuted(self):
        """The sine and the cosine of a pair oscillate at one frequency: d dimensions hold d / 2."""
        assert distinct_frequencies(code(FINE, 8)) < 8

    def test_sabotage(self):
        """Were the exponent to count dimensions instead of pairs, all frequencies would differ."""
        at = FINE[:, None]
        assert distinct_frequencies(np.sin(0.3 + at * 10_000.0 ** (-np.arange(8) / 8))) == 8


# --- Relative schemes --------------------------------------------------------------------------------------------


def scores(kind: str, shift: int, **overrides) -> np.ndarray:
    """Attention scores of the first layer with all positions moved on by `shift`."""
    model = tiny(kind, **overrides)
    at = shift + jnp.arange(T, dtype=jnp.int32)[None]
    _, seen = capture(model, "blocks.0.attention.scores")(jnp.asarray(WINDOW, jnp.int32)[None], positions_BT=at)
    return np.asarray(seen["blocks.0.attention.scores"])[..., np.tril(np.ones((T, T), bool))]


def shift_change(kind: str, shift: int) -> float:
    """Largest change relative to the largest score."""
    reference = scores(kind, 0)
    return float(np.abs(scores(kind, shift) - reference).max() / np.abs(reference).max())


class TestRopeRelativeOnly:
    claim = "rope_relative_only"

    @pytest.mark.parametrize("shift", [1, 10, 100, 1000])
    def test_holds(self, shift):
        assert shift_change("rope", shift) < 1e-4

    @pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
    def test_sabotage(self, kind):
        within_the_table = 2
        assert shift_change(kind, within_the_table) > 0.01

    def test_precision_of_the_angles(self):
        """Angles are float32 numbers, so the property wears off with size: far beyond the claimed range it is gone."""
        changes = [shift_change("rope", shift) for shift in (10**3, 10**5, 10**7)]
        assert changes[0] < changes[1] < changes[2] and changes[2] > 1e-3


def check_alibi(model, heads: int) -> None:
    at = jnp.arange(T, dtype=jnp.int32)[None]
    bias = np.asarray(model.position.bias(at, at))[0]
    power = 2 ** int(np.log2(heads))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    slopes += [2 ** (-4 * i / power) for i in range(1, 2 * (heads - power), 2)]  # not a power of two: between those
    for h, (t, s) in itertools.product(range(heads), itertools.product(range(T), repeat=2)):
        if s <= t:
            np.testing.assert_allclose(bias[h, t, s], -slopes[h] * (t - s), rtol=1e-6)
    names = [
        str(path) for path, _ in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    ]
    assert names and not [name for name in names if "position" in name]
    x = jnp.ones((1, T, 16))
    assert model.position.embed(x, at) is x


class TestAlibiFormula:
    claim = "alibi_formula"

    @pytest.mark.parametrize("heads", [4, 8, 12])
    def test_holds(self, heads):
        check_alibi(tiny("alibi", **{"model.attention.num_heads": heads, "model.attention.head_dim": 4}), heads)
        slopes = np.sort(alibi_slopes(heads))
        if heads in (4, 8):
            np.testing.assert_allclose(slopes[1:] / slopes[:-1], slopes[1] / slopes[0], rtol=1e-6)

    def test_sabotage(self, monkeypatch):
        model = tiny("alibi", **{"model.attention.num_heads": 4})
        with monkeypatch.context() as patched, pytest.raises(AssertionError):
            patched.setattr("transformer.model.positions.alibi_slopes", lambda n: alibi_slopes(n)[::-1])
            check_alibi(model, 4)
        with pytest.raises(AssertionError):
            model = tiny("learned", **{"model.attention.num_heads": 4})
            model.position.bias = tiny("alibi", **{"model.attention.num_heads": 4}).position.bias
            check_alibi(model, 4)


# --- The longest text --------------------------------------------------------------------------------------------

TRAINED = 8


def runs_at_four_times(kind: str) -> bool:
    window = np.random.default_rng(0).integers(0, V, (1, 4 * TRAINED), dtype=np.int32)
    return bool(np.isfinite(tiny(kind)(window)).all())


class TestMaxContextNotArchitectural:
    claim = "max_context_not_architectural"

    @pytest.mark.parametrize("kind", POSITIONS)
    def test_holds(self, kind):
        """Every scheme runs at four times the trained length but the learned table, which says what it lacks."""
        if kind == "learned":
            with pytest.raises(
                UserError, match=r"32 tokens .* only 8 positions; .* larger model\.position\.max_length"
            ):
                runs_at_four_times(kind)
        else:
            assert runs_at_four_times(kind)

    def test_sabotage(self, monkeypatch):
        """A limit built into attention or a block would stop every scheme."""

        def limited(self, x_BTD, positions_BT):
            if x_BTD.shape[1] > TRAINED:
                raise UserError("too long")
            return x_BTD

        monkeypatch.setattr(NoPosition, "embed", limited)
        with pytest.raises(UserError, match="too long"):
            runs_at_four_times("rope")


def rows_that_learn() -> list[int]:
    """Rows of a table four times as long as the windows that have a gradient."""
    structure, params = nnx.split(tiny("learned", **{"model.position.max_length": 4 * TRAINED}))
    window = np.random.default_rng(0).integers(0, V, (2, TRAINED + 1), dtype=np.int32)

    def loss(params):
        log_p = jax.nn.log_softmax(nnx.merge(structure, params)(window[:, :-1]))
        return -jnp.take_along_axis(log_p, window[:, 1:, None], axis=-1).mean()

    gradient = nnx.to_pure_dict(jax.grad(loss)(params))["position"]["table"]
    return np.flatnonzero(np.abs(gradient).sum(axis=1)).tolist()


class TestRowsNeverVisitedLearnNothing:
    claim = "learned_pe_no_extrapolation"

    def test_holds(self):
        """Their gradient is exactly zero."""
        assert rows_that_learn() == list(range(TRAINED))

    def test_sabotage(self, monkeypatch):
        """A table whose rows are read relative to their mean teaches all of them."""
        embed = LearnedPosition.embed
        monkeypatch.setattr(LearnedPosition, "embed", lambda self, x, at: embed(self, x, at) - self.table[...].mean(0))
        assert rows_that_learn() == list(range(4 * TRAINED))
