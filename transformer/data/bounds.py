"""What a score is worth: entropies of the text itself, from counts, in milliseconds."""

from __future__ import annotations

import numpy as np

_CHUNK = 1 << 24  # tokens counted at a time, so that the pair codes of a large split do not all sit in memory
_DENSE_PAIRS = 1 << 22  # largest table of pairs that is counted directly


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution proportional to `counts`."""
    counts = counts[counts > 0].astype(np.float64)
    total = counts.sum()
    return float(np.log(total) - (counts * np.log(counts)).sum() / total) if total else 0.0


def unigram_entropy(tokens: np.ndarray) -> float:
    """Nats per token of the best model that ignores context: what one that only learned frequencies scores.

    Args:
      tokens: unsigned integers [number of tokens].
    """
    return entropy(count(tokens))


def bigram_entropy(tokens: np.ndarray, vocabulary_size: int) -> float:
    """Nats per token of the best model that sees one token back: H(x_t | x_{t-1}) of this very text.

    Both entropies are those of the counted text, so for a short text they lie below what any model that has
    not seen the text could reach: the bigram one by about (distinct pairs) / (2 * tokens).

    Args:
      tokens: unsigned integers below `vocabulary_size`, [number of tokens].
    """
    return entropy(_count_pairs(tokens, vocabulary_size)) - entropy(count(tokens[:-1]))


def conditional_entropy(targets: np.ndarray, before: np.ndarray, vocabulary_size: int) -> float:
    """H(target | token before it) of these very pairs, nats per target.

    Args:
      targets, before: integers up to `vocabulary_size`, one pair per target.
    """
    codes = before.astype(np.int64) * (vocabulary_size + 1) + targets
    joint = np.unique(codes, return_counts=True)[1]
    return entropy(joint) - entropy(np.bincount(before))


def count(tokens: np.ndarray) -> np.ndarray:
    """How often each token occurs, [largest token + 1]; a part at a time, however long the text."""
    counts = np.zeros(0, np.int64)
    for start in range(0, len(tokens), _CHUNK):
        chunk = np.bincount(tokens[start : start + _CHUNK], minlength=len(counts))
        chunk[: len(counts)] += counts
        counts = chunk
    return counts


def _count_pairs(tokens: np.ndarray, vocabulary_size: int) -> np.ndarray:
    """How often each pair of neighbours occurs, in no particular order."""
    if vocabulary_size**2 > _DENSE_PAIRS:
        return np.unique(_pair_codes(tokens, vocabulary_size), return_counts=True)[1]
    counts = np.zeros(vocabulary_size**2, np.int64)
    for start in range(0, len(tokens) - 1, _CHUNK):
        codes = _pair_codes(tokens[start : start + _CHUNK + 1], vocabulary_size)
        counts += np.bincount(codes, minlength=len(counts))
    return counts


def _pair_codes(tokens: np.ndarray, vocabulary_size: int) -> np.ndarray:
    return tokens[:-1].astype(np.int64) * vocabulary_size + tokens[1:]
