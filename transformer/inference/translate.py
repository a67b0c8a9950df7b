"""Translations to read, and their BLEU beside that of a word-for-word lexicon."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from transformer.data.batch import Batch
from transformer.data.batching import length_buckets, read_rows
from transformer.errors import UserError
from transformer.inference.checks import CHECKS, Subject
from transformer.inference.generate import generate
from transformer.inference.lexicon import Lexicon
from transformer.inference.sampling import SAMPLERS, Sampler
from transformer.training.run import LoadedRun

SENTENCES = 1000  # sources that are translated
SHOWN = 20
BATCH = 64
UNKNOWN, NEVER_SAID = "\ufffd", "\ufffc"  # what no vocabulary can spell, as it is decoded and as it is held against it


def source_lengths(rows: Batch) -> np.ndarray:
    """Real tokens of every row's source, int [N]."""
    return (np.asarray(rows.source_segments_BS) != 0).sum(axis=1)


def source_padding(rows: Batch) -> float:
    """Share of what the encoder reads that is padding, in the batches that `translations` makes."""
    lengths, longest = source_lengths(rows), np.asarray(rows.source_BS).shape[1]
    return 1 - lengths.sum() / sum(len(picked) * width for picked, width in length_buckets(lengths, BATCH, longest))


def translations(run: LoadedRun, rows: Batch, sampler: Sampler | None = None) -> list[np.ndarray]:
    """The translation of every row's source, in the rows' order, without `eos`; at most as long as the targets of the
    training, or as a table of positions has room for behind `bos`.

    Args:
      rows: with sources; batched by length.
      sampler: by default greedy.
    """
    room, known = run.config.data.sequence_length, run.model.position.max_length
    room = room if known is None else min(room, known - 1)
    bos, eos = run.vocabulary.special("bos"), run.vocabulary.special("eos")
    found: list[np.ndarray] = [np.zeros(0, np.int32)] * rows.rows
    for picked, width in length_buckets(source_lengths(rows), BATCH, np.asarray(rows.source_BS).shape[1]):
        full = np.resize(picked, BATCH)  # one shape per width: the last batch repeats rows
        batch = read_rows(rows, jnp.asarray(full))
        made = generate(
            run.model,
            np.full((BATCH, 1), bos),
            room,
            sampler,
            stop_tokens=(eos,),
            source_BS=np.asarray(batch.source_BS)[:, :width],
            source_segments_BS=np.asarray(batch.source_segments_BS)[:, :width],
        )
        for row, new in zip(picked, made.new, strict=False):
            found[row] = new[new != eos]
    return found


def bleu(hypotheses: list[str], references: list[list[str]]) -> tuple[float, str]:
    """(BLEU, sacrebleu's signature); a sentence may have any number of references (Papineni et al. 2002; Post 2018).

    Raises:
      UserError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise UserError("--checks=translate needs the package sacrebleu; install the extra [translate].") from error
    most = max(map(len, references))
    streams: Any = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    metric = BLEU()
    return float(metric.corpus_score(hypotheses, streams).score), str(metric.get_signature())


def sentences(run: LoadedRun, rows: Batch) -> list[tuple[str, str]]:
    """(source, target) of every row as text. A target's unknown words are written as another mark than a translation's:
    two unknown words are no match."""
    decode = run.vocabulary.decode
    pairs = zip(np.asarray(rows.source_BS), np.asarray(rows.tokens_BL), strict=True)
    return [(decode(source), decode(target).replace(UNKNOWN, NEVER_SAID)) for source, target in pairs]


def uncut(run: LoadedRun, rows: Batch) -> Batch:
    """The rows that were surely not shortened: under data.too_long=cut those with room left on both sides."""
    if run.config.data.too_long != "cut":
        return rows
    assert rows.source_segments_BS is not None
    return rows.take(
        np.flatnonzero((np.asarray(rows.segments_BL)[:, -1] == 0) & (np.asarray(rows.source_segments_BS)[:, -1] == 0))
    )


@CHECKS.register("translate")
def check_translate(subject: Subject) -> dict[str, Any]:
    """BLEU of translations and of a word-for-word lexicon, with a page of both to read. Translations are greedy, unless
    `decode.sampler` is another that draws nothing, such as beam. References are whole targets, as the vocabulary spells
    them: words it does not know match nothing."""
    run, rows = subject.run, subject.dataset.splits[subject.split]
    if not isinstance(rows, Batch) or rows.source_BS is None:
        raise UserError("--checks=translate needs a run on pairs: an encoder-decoder with objective.kind=seq2seq.")
    if run.config.data.packing != "none":
        raise UserError("--checks=translate needs one pair per row: data.packing=none.")
    rows = uncut(run, rows)
    if not rows.rows:
        raise UserError(
            "--checks=translate found no pair that data.too_long=cut has surely left whole; raise data.sequence_length "
            "and data.source_length."
        )
    references: dict[str, list[str]] = {}
    first: list[int] = []
    for number, (source, target) in enumerate(sentences(run, rows)):
        if source not in references:
            first.append(number)
        references.setdefault(source, []).append(target)
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(first)[:SENTENCES])
    picked = rows.take(chosen)
    entry = SAMPLERS[run.config.decode.sampler]
    entry = SAMPLERS["greedy"] if "random" in entry.traits else entry
    sources = [source for source, _ in sentences(run, picked)]
    wanted = [references[source] for source in sources]
    ours = [run.vocabulary.decode(tokens) for tokens in translations(run, picked, entry.build(run.config.decode))]
    lexicon = Lexicon(sentences(run, subject.dataset.splits["train"]))
    word_for_word = [lexicon.translate(source) for source in sources]
    score, signature = bleu(ours, wanted)
    page = "\n\n".join(
        f"source     {sources[i]}\nreference  {wanted[i][0]}\nmodel      {ours[i]}\nlexicon    {word_for_word[i]}"
        for i in rng.permutation(len(sources))[:SHOWN]
    )
    return {
        "sampler": entry.name,
        "bleu": score,
        "lexicon_bleu": bleu(word_for_word, wanted)[0],
        "sentences": len(sources),
        "pad_share": source_padding(picked),
        "signature": signature,
        "translations": page,
    }
