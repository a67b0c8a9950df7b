"""Evaluates one run: `python eval.py --workdir=DIR [--checks=loss,position,generate] [--split=validation]`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from absl import flags

from transformer import command_line
from transformer.errors import UserError

USAGE = """usage: python eval.py --workdir=DIR [--checks=loss,position,generate] [--split=validation]
                      [--checkpoint=last] [--decode=FIELD=VALUE ...]

Shows loss and bits per byte, loss by position and what the model writes: continuations, answers, filled gaps. Further
checks: translate (BLEU, for pairs) and shots (accuracy by examples in context). Writes them to DIR/eval.json.
--decode=sampler=beam --decode=beams=8 decodes in another way than the run's config says."""

WORKDIR = flags.DEFINE_string("workdir", None, "Run directory of a training run.")
CHECKS = flags.DEFINE_list("checks", ["loss", "position", "generate"], "What to measure.")
SPLIT = flags.DEFINE_string("split", "validation", "Split: train, validation, or test where there is one.")
DECODE = flags.DEFINE_multi_string("decode", [], "FIELD=VALUE of decode.*, instead of the run's; may be repeated.")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Newest or lowest validation loss.")


def main() -> int:
    """Loads the run, measures, prints and stores; returns the exit code."""
    if not WORKDIR.value:
        raise UserError("--workdir=DIR is required: the run directory that train.py printed.")
    from transformer.platform import prepare

    prepare()
    import jax

    from transformer.config import replace
    from transformer.inference.checks import CHECKS as REGISTRY
    from transformer.inference.checks import open_subject
    from transformer.inference.show import show
    from transformer.training.jsonfiles import strict, write_json
    from transformer.training.run import load

    entries = [REGISTRY[name] for name in CHECKS.value]
    run = load(WORKDIR.value, CHECKPOINT.value)
    overrides = command_line.assignments(DECODE.value, prefix="decode.")
    run = dataclasses.replace(run, config=replace(run.config, overrides, yielding="decode"))
    subject = open_subject(run, SPLIT.value)
    results = {}
    # Compiled evaluation has its precision; checks that call the model themselves take it from here.
    with jax.default_matmul_precision(run.config.numerics.matmul_precision):
        for entry in entries:
            results[entry.name] = entry.build(subject)
            show(entry.name, results[entry.name])
    path = Path(WORKDIR.value) / "eval.json"
    found = {"step": run.step, "split": SPLIT.value, "checkpoint": CHECKPOINT.value, **results}
    write_json(path, strict(found))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    command_line.run(main, USAGE)
