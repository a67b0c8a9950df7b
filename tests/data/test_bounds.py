"""Entropies against closed forms and a count by hand."""

import collections
import itertools
import math

import numpy as np
import pytest

from transformer.data import bounds


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
