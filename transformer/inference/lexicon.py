"""A word-for-word dictionary learned from pairs of sentences: what a translation model must be better than."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

_SOURCE = re.compile(r"\w+['’]?|[^\w\s]")  # l'homme is two words
_TARGET = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")  # don't is one, as it has to be written


class Lexicon:
    """IBM model 1 (Brown et al. 1993): t(target word | source word), by expectation maximisation; order is ignored.

    Args:
      pairs: (source, target) sentences.
      iterations: of EM.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], iterations: int = 5):
        source_ids: dict[str, int] = {}
        target_ids: dict[str, int] = {}
        spellings: defaultdict[str, Counter[str]] = defaultdict(Counter)  # where no sentence begins
        f_chunks, e_chunks, place_chunks, places = [], [], [], 0
        for source, target in pairs:
            spelled = _TARGET.findall(target)
            for word in spelled[1:]:
                spellings[word.lower()][word] += 1
            f = np.array([source_ids.setdefault(w, len(source_ids)) for w in _SOURCE.findall(source.lower())], np.int64)
            e = np.array([target_ids.setdefault(w.lower(), len(target_ids)) for w in spelled], np.int64)
            f_chunks.append(np.tile(f, len(e)))
            e_chunks.append(np.repeat(e, len(f)))
            place_chunks.append(np.repeat(places + np.arange(len(e)), len(f)))
            places += len(e)
        f_all, e_all, place = map(np.concatenate, (f_chunks, e_chunks, place_chunks))
        codes, pair = np.unique(f_all * len(target_ids) + e_all, return_inverse=True)
        f_of, e_of = codes // len(target_ids), codes % len(target_ids)
        probability = np.ones(len(codes))
        for _ in range(iterations):
            share = probability[pair]
            share /= np.bincount(place, share)[place]  # of each target word's count, over the source words beside it
            counts = np.bincount(pair, share)
            probability = counts / np.bincount(f_of, counts)[f_of]
        names = [spellings[word].most_common(1)[0][0] if word in spellings else word for word in target_ids]
        order = np.lexsort((probability, f_of))  # the likeliest of each source word comes last and stays
        self.best = dict(zip(f_of[order].tolist(), (names[i] for i in e_of[order]), strict=True))
        self.source_ids = source_ids

    def translate(self, text: str) -> str:
        """Every word by its likeliest translation, in the same order; unknown words stay what they are."""
        known = ((word, self.source_ids.get(word.lower(), -1)) for word in _SOURCE.findall(text))
        return written(self.best.get(number, word) for word, number in known)


def written(tokens: Iterable[str]) -> str:
    """Words as a sentence: no space before punctuation, a capital letter in front."""
    text = re.sub(r"\s+([^\w\s])", r"\1", " ".join(tokens))
    return text[:1].upper() + text[1:]
