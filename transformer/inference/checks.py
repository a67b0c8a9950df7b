"""What `eval.py` measures on a finished run."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import numpy as np

from transformer.data.batching import Dataset
from transformer.errors import DataError, UserError
from transformer.inference.generate import generate
from transformer.inference.sampling import SAMPLERS, Greedy
from transformer.model.cache import CACHES
from transformer.registry import Registry
from transformer.training.evaluation import evaluate
from transformer.training.run import LoadedRun, load_dataset

CHECKS = Registry("--checks")
PROMPT_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run, and the split it is measured on."""

    run: LoadedRun
    dataset: Dataset
    split: str

    @functools.cached_property
    def evaluation(self) -> dict[str, Any]:
        """Losses over the whole split, computed once for all checks, with the seconds it took."""
        started = time.perf_counter()
        result = evaluate(self.run.program, self.run.state, self.dataset, self.split)
        return {**result, "seconds": time.perf_counter() - started}


def open_subject(run: LoadedRun, split: str) -> Subject:
    """Finds the corpus a run was trained on.

    Raises:
      DataError: no such split, or a vocabulary that is not the run's.
    """
    dataset = load_dataset(run.config)
    if split not in dataset.splits:
        raise DataError(f"--split={split!r} does not exist; {dataset.name} has: {', '.join(dataset.splits)}.")
    if dataset.vocabulary.to_dict() != run.vocabulary.to_dict():
        raise DataError("The corpus changed: its vocabulary is not the one this run was trained with.")
    return Subject(run, dataset, split)


@CHECKS.register("loss")
def check_loss(subject: Subject) -> dict[str, Any]:
    """Loss and bits per byte over the whole split."""
    result = subject.evaluation
    return {
        "loss": result["loss"],
        **{name: result[name] for name in ("bits_per_byte", "pad_share") if name in result},
        "accuracy": result["accuracy"],
        "tokens": result["eval_tokens"],
        "tokens_per_second": result["eval_tokens"] / result["seconds"],
        **{f"{name}_entropy": nats for name, nats in subject.dataset.bounds(subject.split).items()},
    }


@CHECKS.register("position")
def check_position(subject: Subject) -> dict[str, Any]:
    """Loss by position in the window, averaged over eight equal stretches (or fewer, for short windows)."""
    by_position = np.asarray(subject.evaluation["loss_by_position"])
    parts = np.array_split(np.arange(len(by_position)), min(8, len(by_position)))
    return {f"{part[0]}-{part[-1]}": float(by_position[part].mean()) for part in parts}


@CHECKS.register("generate")
def check_generate(subject: Subject) -> dict[str, Any]:
    """A greedy continuation, one by `decode.sampler`, and decoding speed."""
    run, decode = subject.run, subject.run.config.decode
    known = run.model.position.max_length or run.model.position.cache_length
    if decode.prompt:
        prompt = run.vocabulary.encode(decode.prompt)[None]
    else:  # from the split, and short enough to leave room for an answer
        length = PROMPT_TOKENS if known is None else max(1, min(PROMPT_TOKENS, known // 2))
        prompt = np.asarray(subject.dataset.splits[subject.split][:length], np.int32)[None]
    room = decode.max_new_tokens if known is None else known - prompt.shape[1]
    if room < min(1, decode.max_new_tokens):
        raise UserError(
            f"decode.prompt has {prompt.shape[1]} tokens, but the model knows {known} positions; shorten it."
        )
    count = min(decode.max_new_tokens, room)
    texts: dict[str, Any] = {"prompt": run.vocabulary.decode(prompt[0]), "new_tokens": count}
    if not count:
        return texts
    cache = CACHES.build(decode.cache, run.config)
    chosen = SAMPLERS.build(decode.sampler, decode)
    for name, sampler in {"greedy": Greedy(), decode.sampler: chosen}.items():
        answer = generate(run.model, prompt, count, sampler, cache=cache, seed=run.config.seed)
        texts[name] = run.vocabulary.decode(answer.new[0])
    started = time.perf_counter()
    generate(run.model, prompt, count, chosen, cache=cache, seed=run.config.seed + 1)
    return {**texts, "tokens_per_second": count / (time.perf_counter() - started)}


from transformer.inference import translate  # noqa: E402, F401
