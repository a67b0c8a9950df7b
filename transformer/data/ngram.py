"""What counting can do: an interpolated Kneser-Ney model of the training tokens, judged on the validation tokens.

    python -m transformer.data.ngram --config=configs/base.py

A neural model that does not beat these marks has learned nothing that a table of neighbours does not know. Pairs count by
their targets alone, one after the other.
"""

from __future__ import annotations

import dataclasses
import sys

import numpy as np

from transformer.data.corpora import SOURCES, SPLITS
from transformer.data.vocabularies import make_vocabulary
from transformer.errors import DataError, UserError
from transformer.schema import Data

ORDER = 5  # tokens looked at, the predicted one included


@dataclasses.dataclass(frozen=True)
class _Order:
    """The counts of one order k. Grams are numbers of k digits in base V; both arrays of keys are sorted.

    Attributes:
      grams, counts: each k-gram seen, and how often.
      contexts, totals, kinds: each first k - 1 tokens of them; its counts in all, and how many tokens follow it.
      discount: taken from every count.
    """

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray
    discount: float


class KneserNey:
    """Interpolated Kneser-Ney smoothing with one discount per order (Ney et al. 1994; Chen & Goodman 1999).

    The highest order counts how often a gram was seen, every lower one in how many contexts.

    Args:
      tokens: training tokens, unsigned integers [number of tokens].
      vocabulary_size: V.
      order: the longest gram; lowered where V ** order does not fit 63 bits.
    """

    def __init__(self, tokens: np.ndarray, vocabulary_size: int, order: int = ORDER):
        self.vocabulary_size = vocabulary_size
        while vocabulary_size**order >= 2**63:
            order -= 1
        order = min(order, len(tokens))
        grams, counts = np.unique(_grams(tokens, order, vocabulary_size), return_counts=True)
        orders = []
        for k in range(order, 0, -1):
            orders.append(_order(grams, counts, vocabulary_size))
            # What follows a gram without its first token, in as many different contexts as there are first tokens.
            grams, counts = np.unique(grams % vocabulary_size ** (k - 1), return_counts=True)
        self.orders = orders[::-1]

    def probabilities(self, tokens: np.ndarray) -> list[np.ndarray]:
        """Probability of each token after the first, given the tokens before it: one float64 array [number of tokens - 1]
        for every order from 1 on. Near the start, where fewer tokens stand before, lower orders serve."""
        found = np.full(len(tokens) - 1, 1 / self.vocabulary_size)
        by_order = []
        for k, counted in enumerate(self.orders, 1):
            first = max(k - 1, 1)  # first place with k - 1 tokens before it
            grams = _grams(tokens, k, self.vocabulary_size)[first - k + 1 :]
            here = found[first - 1 :]
            context, seen = _find(counted.contexts, grams // self.vocabulary_size)
            gram, known = _find(counted.grams, grams)
            kept = np.where(known, counted.counts[gram] - counted.discount, 0)
            spread = counted.discount * counted.kinds[context]
            mixed = np.where(seen, (kept + spread * here) / counted.totals[context], here)
            found = np.concatenate([found[: first - 1], mixed])
            by_order.append(found)
        return by_order


def _order(grams: np.ndarray, counts: np.ndarray, vocabulary_size: int) -> _Order:
    contexts, starts = np.unique(grams // vocabulary_size, return_index=True)
    once, twice = (int((counts == n).sum()) for n in (1, 2))
    discount = once / (once + 2 * twice) if once and twice else 0.5
    kinds = np.diff(np.append(starts, len(grams)))
    return _Order(grams, counts, contexts, np.add.reduceat(counts, starts), kinds, discount)


def _grams(tokens: np.ndarray, order: int, vocabulary_size: int) -> np.ndarray:
    """Every run of `order` tokens as one number, int64 [number of tokens - order + 1]."""
    length = max(len(tokens) - order + 1, 0)
    codes = np.zeros(length, np.int64)
    for i in range(order):
        codes = codes * vocabulary_size + tokens[i : i + length]
    return codes


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index of each wanted key, or any index; whether it is there)."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return places, keys[places] == wanted


def cross_entropies(train: np.ndarray, validation: np.ndarray, vocabulary_size: int, order: int = ORDER) -> list[float]:
    """Nats per validation token after the first, for models of every order from 1 to `order`."""
    model = KneserNey(train, vocabulary_size, order)
    return [float(-np.log(p).mean()) for p in model.probabilities(validation)]


def streams(section: Data) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(split -> tokens of its text or targets in one row, bytes per token) of a corpus.

    Raises:
      DataError: the corpus cannot be had, or is a task, which states its own floor.
    """
    if section.source == "task":
        raise DataError("data.source=task has no text to count: a task states its entropy and its chance itself.")
    corpus = SOURCES.build(section.source, section)
    content, vocabulary = corpus.content, make_vocabulary(section, corpus).with_specials(["eos"])
    assert vocabulary.eos is not None
    rows = {}
    for split in content.splits:
        texts = content.documents.get(split) or [example.target for example in content.examples[split]]
        encoded = [np.append(vocabulary.encode(text), vocabulary.eos).astype(vocabulary.dtype) for text in texts]
        rows[split] = np.concatenate(encoded)
    for split in reversed(SPLITS):
        if share := content.cut.get(split):
            kept = int(len(rows["train"]) * (1 - share))
            rows["train"], rows[split] = rows["train"][:kept], rows["train"][kept:]
    return rows, vocabulary.bytes_per_token


def main(arguments: list[str]) -> int:
    """Prints the marks of the corpus of a config; exit code 2 for what the user can mend."""
    from transformer.command_line import parse

    try:
        config = parse(arguments).config
        rows, stored = streams(config.data)
        train, validation = rows["train"], rows["validation"]
        size = len(stored)
        per_byte = len(validation[1:]) / max(1, int(stored[validation[1:]].sum())) / np.log(2)
        print(f"{len(train)} training and {len(validation)} validation tokens, {size} different ones")
        for order, nats in enumerate(cross_entropies(train, validation, size), 1):
            print(f"order {order}: {nats:.3f} nats per token, {nats * per_byte:.3f} bits per byte")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
