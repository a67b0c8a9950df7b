"""What counting can do: an interpolated Kneser-Ney model of the training tokens, judged on the validation tokens.

    python -m transformer.data.ngram --config=configs/base.py

A neural model that does not beat these marks has learned nothing that a table of neighbours does not know. Pairs count
by their targets alone, one after the other.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from transformer import command_line
from transformer.data.corpora import SOURCES, SPLITS
from transformer.data.vocabularies import make_vocabulary
from transformer.errors import DataError
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

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Probability of each token after the first, given the tokens before it, float64 [number of tokens - 1]. Near
        the start, where fewer tokens stand before, lower orders serve."""
        found = np.full(len(tokens) - 1, 1 / self.vocabulary_size)
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
        return found


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
    """Nats per validation token after the first, for a model of every order from 1 to `order`. Each is a model of its
    own: the lower orders inside a longer one count contexts, not tokens."""
    models = (KneserNey(train, vocabulary_size, k) for k in range(1, order + 1) if vocabulary_size**k < 2**63)
    return [float(-np.log(model.probabilities(validation)).mean()) for model in models]


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
    for split in dict.fromkeys([*content.documents, *content.examples]):
        texts = content.documents.get(split) or [example.target for example in content.examples[split]]
        encoded = [np.append(vocabulary.encode(text), vocabulary.eos).astype(vocabulary.dtype) for text in texts]
        rows[split] = np.concatenate(encoded)
    share, total = 0.0, len(rows["train"])
    for split in reversed(SPLITS):
        if content.cut.get(split):
            share += content.cut[split]
            kept = int(total * (1 - share))
            rows["train"], rows[split] = rows["train"][:kept], rows["train"][kept:]
    return rows, vocabulary.bytes_per_token


def main() -> int:
    """Prints the marks of the corpus of a config."""
    rows, stored = streams(command_line.config_from_flag().config.data)
    train, validation = rows["train"], rows["validation"]
    print(f"{len(train)} training and {len(validation)} validation tokens, {len(stored)} different ones")
    per_byte = len(validation[1:]) / max(1, int(stored[validation[1:]].sum())) / np.log(2)
    for order, nats in enumerate(cross_entropies(train, validation, len(stored)), 1):
        print(f"order {order}: {nats:.3f} nats per token, {nats * per_byte:.3f} bits per byte")
    return 0


if __name__ == "__main__":
    command_line.define_config_flag()
    command_line.run(main, __doc__)
