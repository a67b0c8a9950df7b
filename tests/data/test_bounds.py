"""Entropies against closed forms and a count by hand."""

import collections
import itertools
import math

import numpy as np
import pytest

from tests.data.helpers import section
from transformer.data import bounds, ngram
from transformer.errors import DataError


def bigram_by_hand(tokens):
    pairs = collections.Counter(itertools.pairwise(tokens))
    firsts = collections.Counter(tokens[:-1])
    total = len(tokens) - 1
    return -sum(n / total * math.log(n / firsts[a]) for (a, _), n in pairs.items())


def test_closed_forms():
    uniform = np.arange(64, dtype=np.uint16).repeat(100)
    assert bounds.unigram_entropy(uniform) == pytest.approx(math.log(64))
    alternating = np.tile(np.array([3, 7], np.uint8), 500)
    assert bounds.unigram_entropy(alternating) == pytest.approx(math.log(2))
    assert bounds.bigram_entropy(alternating, 8) == pytest.approx(0, abs=1e-12)
    noise = np.random.default_rng(0).integers(0, 16, 200_000).astype(np.uint8)
    assert bounds.bigram_entropy(noise, 16) == pytest.approx(math.log(16), abs=2e-3)


@pytest.mark.parametrize("vocabulary_size", [260, 65_536])  # a table of all pairs, and one of those that occur
@pytest.mark.parametrize("chunk", [7, 1 << 24])
def test_pairs_are_counted_across_chunks(monkeypatch, vocabulary_size, chunk):
    monkeypatch.setattr(bounds, "_CHUNK", chunk)
    tokens = np.random.default_rng(1).integers(0, 5, 1000).astype(np.uint16)
    assert bounds.bigram_entropy(tokens, vocabulary_size) == pytest.approx(bigram_by_hand(tokens.tolist()))
    counts = np.array(list(collections.Counter(tokens.tolist()).values()))
    assert bounds.unigram_entropy(tokens) == pytest.approx(-(counts / 1000 * np.log(counts / 1000)).sum())


# --- N-grams -----------------------------------------------------------------------------------------------------


def kneser_ney_by_hand(train, context, token, size, order):
    """The probability of a token after a context, by the formula, with sets and loops."""
    if order == 0:
        return 1 / size
    history = tuple(context[len(context) - order + 1 :]) if order > 1 else ()

    def grams(k):
        return [tuple(train[i : i + k]) for i in range(len(train) - k + 1)]

    longest = len(context) == ORDER - 1 and order == ORDER
    counts = collections.Counter(grams(order)) if longest else collections.Counter(g[1:] for g in set(grams(order + 1)))
    once, twice = (sum(n == k for n in counts.values()) for k in (1, 2))
    discount = once / (once + 2 * twice) if once and twice else 0.5
    lower = kneser_ney_by_hand(train, context, token, size, order - 1)
    following = {g[-1]: n for g, n in counts.items() if g[:-1] == history}
    if not following:
        return lower
    total = sum(following.values())
    kept = max(following[token] - discount, 0) if token in following else 0
    return (kept + discount * len(following) * lower) / total


ORDER = 3


def test_kneser_ney_is_the_formula():
    rng = np.random.default_rng(3)
    train = (rng.random((400,)) ** 2 * 6).astype(np.uint16)
    text = (rng.random((60,)) * 7).astype(np.uint16)  # 6 was never seen
    found = ngram.KneserNey(train, 7, ORDER).probabilities(text)
    for place in range(2, 60):
        context = text[place - 2 : place].tolist()
        wanted = kneser_ney_by_hand(train.tolist(), context, int(text[place]), 7, ORDER)
        assert found[place - 1] == pytest.approx(wanted, rel=1e-12)


def test_kneser_ney_gives_probabilities():
    train = np.random.default_rng(0).integers(0, 5, 300).astype(np.uint8)
    for order in (1, 2, 4):
        model = ngram.KneserNey(train, 6, order)
        for context in ([0, 1, 2], [5, 5, 5], [4, 4, 1]):
            assert sum(model.probabilities(np.array([*context, token]))[-1] for token in range(6)) == pytest.approx(1)


def test_ngrams_find_what_a_markov_chain_holds():
    """A first-order chain: order 2 reaches its entropy, order 1 does not, and longer contexts add nothing."""
    rng = np.random.default_rng(1)
    transition = rng.dirichlet([0.3] * 8, 8)
    tokens = [0]
    for draw in rng.random(60_000):
        tokens.append(min(7, int(np.searchsorted(transition[tokens[-1]].cumsum(), draw))))
    tokens = np.array(tokens, np.uint8)
    train, validation = tokens[:50_000], tokens[50_000:]
    weight = np.bincount(train, minlength=8) / len(train)
    entropy = float(weight @ -(transition * np.log(np.maximum(transition, 1e-300))).sum(axis=1))
    scores = ngram.cross_entropies(train, validation, 8, 4)
    assert scores[1] == pytest.approx(entropy, abs=0.02)
    assert scores[0] > entropy + 0.2 and min(scores[2:]) > scores[1] - 0.005 and scores[3] < scores[1] + 0.05
    assert scores[1] > bounds.bigram_entropy(validation, 8) - 0.002  # what the counted text itself could score


def test_a_large_vocabulary_lowers_the_order():
    tokens = np.random.default_rng(0).integers(0, 50_000, 2000).astype(np.uint16)
    assert len(ngram.KneserNey(tokens, 65_536, 5).orders) == 3


def test_corpora_become_streams_as_they_do_for_training(tmp_path):
    (tmp_path / "text.txt").write_text("abcdefghij" * 100)
    rows, stored = ngram.streams(section("text", path=f"{tmp_path}/text.txt", test_fraction=0.2))
    assert {split: len(row) for split, row in rows.items()} == {"train": 700, "validation": 100, "test": 201}
    assert stored.sum() == 256
    (tmp_path / "pairs.tsv").write_text("".join(f"{i}\tt{i}\n" for i in range(50)))
    rows, _ = ngram.streams(section("pairs", path=f"{tmp_path}/pairs.tsv", vocabulary="characters"))
    assert sum(map(len, rows.values())) == sum(len(f"t{i}") + 1 for i in range(50))
    with pytest.raises(DataError, match="has no text to count"):
        ngram.streams(section("task"))
