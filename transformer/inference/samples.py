"""What a trained model writes, by its family: continuations, answers to the rows of its data, filled gaps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from transformer.data.batch import Batch
from transformer.data.dataset import Text
from transformer.errors import UserError
from transformer.inference.checks import CHECKS, Subject
from transformer.inference.generate import generate
from transformer.inference.masked import FILLERS, fill
from transformer.inference.questions import Question, questions
from transformer.inference.sampling import SAMPLERS, Greedy
from transformer.model.cache import CACHES
from transformer.model.heads import HEADS
from transformer.training.step import EVALUATION_SEED

PROMPT_TOKENS = 16
ROWS = 32  # of the split that are answered or filled
SHOWN = 5
NOTHING = "nothing_to_generate"


@CHECKS.register("generate")
def check_generate(subject: Subject) -> dict[str, Any]:
    """What the model writes, and how fast: greedy and by `decode.sampler`, or, between given tokens, by `decode.fill`.

    A model that predicts labels writes nothing, and says so.
    """
    model = subject.run.config.model
    if "over_tokens" not in HEADS[model.head.kind].traits:
        return {NOTHING: f"model.head.kind={model.head.kind} predicts labels, not tokens; see --checks=loss."}
    return WRITERS[model.family](subject)


def first_rows(subject: Subject) -> Batch:
    """The first rows of the split as the model sees them in an evaluation, in NumPy."""
    batch = next(iter(subject.dataset.batches(subject.split, ROWS)))
    return jax.tree.map(np.asarray, subject.run.program.objective.prepare(batch, jax.random.key(EVALUATION_SEED)))


def _check_fits(tokens: int, known: int | None, who: str = "model", answer: int = 0) -> None:
    if known is not None and tokens + answer > known:
        raise UserError(f"decode.prompt has {tokens} tokens, but the {who} knows {known} positions; shorten it.")


def _page(subject: Subject, rows: Sequence[Mapping[str, np.ndarray]]) -> str:
    """Rows of named texts, to read."""
    spell = subject.run.vocabulary.spell
    width = 2 + max(len(name) for row in rows for name in row)
    return "\n\n".join("\n".join(f"{name:<{width}}{spell(ids)}" for name, ids in row.items()) for row in rows[:SHOWN])


# --- Token after token -------------------------------------------------------------------------------------------


def _decoded(
    subject: Subject, prompts: Any, limits: Sequence[int], **conditions: Any
) -> tuple[dict[str, list[np.ndarray]], float]:
    """({"greedy", and the name of `decode.sampler`: new tokens of each row}, tokens per second of the latter)."""
    run, decode = subject.run, subject.run.config.decode
    conditions = {"cache": CACHES.build(decode.cache, run.config), **conditions}
    chosen, seed = SAMPLERS.build(decode.sampler, decode), run.config.seed
    found = {
        name: generate(run.model, prompts, limits, sampler, seed=seed, **conditions).new
        for name, sampler in {"greedy": Greedy(), decode.sampler: chosen}.items()
    }
    started = time.perf_counter()
    again = generate(run.model, prompts, limits, chosen, seed=seed + 1, **conditions)
    return found, float(again.new_length_B.sum() / (time.perf_counter() - started))


def _continued(
    subject: Subject, prompt: np.ndarray, count: int, given: np.ndarray | None = None, **conditions: Any
) -> dict[str, Any]:
    """The text that follows one prompt: `count` tokens, or as many as the model has positions for.

    Args:
      given: what is shown as the prompt; None: the prompt.
    """
    known, spell = _known(subject), subject.run.vocabulary.spell
    count = count if known is None else min(count, known - len(prompt))
    texts: dict[str, Any] = {"prompt": spell(prompt if given is None else given), "new_tokens": count}
    if not count:
        return texts
    answers, speed = _decoded(subject, [prompt], [count], **conditions)
    return {**texts, **{name: spell(new[0]) for name, new in answers.items()}, "tokens_per_second": speed}


def _answered(subject: Subject, asked: list[Question], **conditions: Any) -> dict[str, Any]:
    """All questions at once: how many greedy answers are right, and a page of them."""
    known, most = _known(subject), subject.run.config.decode.max_new_tokens
    if known is not None:
        asked = [q for q in asked if len(q.prompt) < known]
        asked = [dataclasses.replace(q, limit=min(q.limit, known - len(q.prompt))) for q in asked]
    if not asked:
        return {NOTHING: f"no row leaves room for an answer: the model knows {known} positions."}
    if not most:
        return {"rows": len(asked), "new_tokens": 0}
    limits = [min(most, q.limit) for q in asked]
    conditions = {"stop_tokens": _stops(subject), **_sources([q.source for q in asked]), **conditions}
    answers, speed = _decoded(subject, [q.prompt for q in asked], limits, **conditions)
    right = [np.array_equal(new, q.wanted) for new, q in zip(answers["greedy"], asked, strict=True)]
    rows = [
        {"given": question.given, "wanted": question.wanted, **{name: new[i] for name, new in answers.items()}}
        for i, question in enumerate(asked)
    ]
    return {
        "rows": len(asked),
        "greedy_exact_match": float(np.mean(right)),
        "tokens_per_second": speed,
        "answers": _page(subject, rows),
    }


def _known(subject: Subject) -> int | None:
    """Positions that the model can decode; None: any number."""
    position = subject.run.model.position
    return position.max_length or position.cache_length


def _stops(subject: Subject) -> tuple[int, ...]:
    eos = subject.run.vocabulary.eos
    return () if eos is None else (eos,)


# --- Families ----------------------------------------------------------------------------------------------------


def _write_on(subject: Subject) -> dict[str, Any]:
    """A decoder continues `decode.prompt` or the beginning of a text, and answers rows of examples or of a task."""
    run, decode, known = subject.run, subject.run.config.decode, _known(subject)
    is_text, prefix = isinstance(subject.dataset, Text), run.program.layout.marks_prefix  # as it was trained
    if decode.prompt:
        prompt = run.vocabulary.parse(decode.prompt)
        _check_fits(len(prompt), known, answer=min(1, decode.max_new_tokens))
    elif is_text:  # short enough to leave room for an answer
        length = PROMPT_TOKENS if known is None else max(1, min(PROMPT_TOKENS, known // 2))
        prompt = np.asarray(subject.dataset.splits[subject.split][:length], np.int32)
    else:
        return _answered(subject, questions(first_rows(subject), eos=run.vocabulary.eos), prefix=prefix)
    return _continued(
        subject, prompt, decode.max_new_tokens, stop_tokens=() if is_text else _stops(subject), prefix=prefix
    )


def _from_source(subject: Subject) -> dict[str, Any]:
    """An encoder-decoder answers `decode.prompt`, or the sources of the split."""
    run, prompt = subject.run, subject.run.config.decode.prompt
    eos = run.vocabulary.eos
    asked = questions(first_rows(subject), [run.vocabulary.special("bos")], eos)
    if not prompt:
        return _answered(subject, asked)
    like, source = asked[0], run.vocabulary.parse(prompt)
    if like.given[-1] == eos and source[-1] != eos:
        source = np.append(source, like.given[-1])  # as the sources of the data end
    if run.model.encoder is not None:
        _check_fits(len(source), run.model.encoder.position.max_length, "encoder")
    count = min(run.config.decode.max_new_tokens, subject.dataset.layout.length)  # as long as a target may be
    return _continued(subject, like.prompt, count, given=source, stop_tokens=_stops(subject), **_sources([source]))


def _sources(sources: Sequence[np.ndarray | None]) -> dict[str, np.ndarray]:
    """Sources as `generate` takes them; nothing where there are none."""
    present = [source for source in sources if source is not None]
    if not present:
        return {}
    source_BS = np.zeros((len(present), max(map(len, present))), np.int32)
    segments_BS = np.zeros_like(source_BS)
    for row, source in enumerate(present):
        source_BS[row, : len(source)], segments_BS[row, : len(source)] = source, 1
    return {"source_BS": source_BS, "source_segments_BS": segments_BS}


def _fill_gaps(subject: Subject) -> dict[str, Any]:
    """An encoder fills each <mask> of `decode.prompt`, or the places its objective hides in the rows of the split."""
    run, decode = subject.run, subject.run.config.decode
    mask, filler = run.vocabulary.special("mask"), FILLERS.build(decode.fill, decode)
    if decode.prompt:
        text_BT = run.vocabulary.parse(decode.prompt)[None]
        if not (text_BT == mask).any():
            raise UserError("decode.prompt has no <mask>, and an encoder fills gaps: write <mask> for each of them.")
        _check_fits(text_BT.shape[1], run.model.position.max_length)
        filled_BT = fill(run.model, text_BT, text_BT == mask, mask, filler, seed=run.config.seed)
        return {name: run.vocabulary.spell(x) for name, x in {"prompt": text_BT, decode.fill: filled_BT}.items()}
    batch: Any = first_rows(subject)
    batch = batch.take((batch.weights_BL > 0).any(axis=1))
    wanted_BL, free_BL = batch.labels, batch.weights_BL > 0

    def filled(seed: int) -> np.ndarray:
        return fill(run.model, wanted_BL, free_BL, mask, filler, segments_BT=batch.segments_BL, seed=seed)

    filled_BL, started = filled(run.config.seed), time.perf_counter()
    filled(run.config.seed + 1)
    speed = float(free_BL.sum() / (time.perf_counter() - started))
    given_BL = np.where(free_BL, mask, wanted_BL)
    texts = zip(given_BL, wanted_BL, filled_BL, strict=True)
    return {
        "rows": len(free_BL),
        "places": int(free_BL.sum()),
        "right": float((filled_BL == wanted_BL)[free_BL].mean()),
        "places_per_second": speed,
        "texts": _page(subject, [dict(zip(("given", "wanted", decode.fill), row, strict=True)) for row in texts]),
    }


WRITERS: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "decoder": _write_on,
    "prefix_decoder": _write_on,
    "encoder_decoder": _from_source,
    "encoder": _fill_gaps,
}
