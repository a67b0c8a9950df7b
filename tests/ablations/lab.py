"""A lab small enough for tests: a made-up text, tiny models, ablations as files, records with known numbers."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ablations import store
from ablations.cells import ArmCell, Member, cells
from ablations.schema import Ablation, Arm, Contrast, Profile
from ablations.store import Record
from transformer.model import data_seed, init_seed
from transformer.schema import Config
from transformer.training.evaluation import evaluate
from transformer.training.run import load_dataset, make_program

VOCABULARY = "the a of attention norm residual mask token head layer is not what learns reads writes and then"
WORDS = VOCABULARY.split()
SIZE: dict[str, Any] = {
    "model.d_model": 16,
    "model.num_layers": 1,
    "model.attention.num_heads": 2,
    "data.source": "text",
    "data.sequence_length": 16,
    "train.batch_size": 8,
    "train.steps": 24,
    "train.eval_every": 12,
    "train.checkpoint_every": 0,
    "train.log_every": 4,
    "eval.tokens": 128,
}
WORSE = Contrast("layernorm_removal", "superiority", test="other", base="base", expect="worse", margin=0.01)


def write_text(path: Path, words: int = 4000, noise: float = 0.0) -> Path:
    """Sentences of a made-up grammar: each word suggests what follows. `noise` is the share of wrong letters in what is
    trained on; the last tenth, which is held out, stays clean."""
    dice = random.Random(0)
    text = "".join(_sentences(dice, words))
    cut = int(0.9 * len(text))
    letters = [dice.choice("abcdefghijklmnopqrstuvwxyz ") if dice.random() < noise else c for c in text[:cut]]
    path.write_text("".join(letters) + text[cut:], encoding="utf-8")
    return path


def _sentences(dice: random.Random, words: int):
    at = 0
    for _ in range(words):
        at = (at * 3 + dice.choice((1, 1, 1, 5))) % len(WORDS)
        yield WORDS[at] + (".\n" if dice.random() < 0.1 else " ")


def ablation(text: Path | str = "text.txt", **changes: Any) -> Ablation:
    """Two arms on a tiny text with two rates to choose from; `size`, `rates` and `seeds` change its only profile."""
    size = {**SIZE, "data.path": str(text), **changes.pop("size", {})}
    profile = Profile(size, changes.pop("rates", (1e-2, 3e-2)), test_seeds=changes.pop("seeds", 2))
    arms = changes.pop("arms", {"base": Arm(), "other": Arm({"model.norm.kind": "none"})})
    return Ablation(
        **{
            "question": "Does the tiny model need its norm?",
            "arms": arms,
            "contrasts": (WORSE,) if "other" in arms else (),
            "profiles": {"tiny": dataclasses.replace(profile, **changes.pop("profile", {}))},
            "positive_control": "",
            **changes,
        }
    )


def write_config(folder: Path, made: Ablation, name: str = "tiny") -> Path:
    """The ablation as the file that the commands read."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"ablation_{name}.py"
    path.write_text(
        f"from ablations.schema import Ablation, Arm, Condition, Contrast, Profile\n\nABLATION = {made!r}\n"
    )
    return path


def arm(made: Ablation, name: str = "base", condition: str = "default", called: str = "tiny") -> ArmCell:
    """One arm of an ablation at its first profile."""
    found = cells(called, made, next(iter(made.profiles)))
    return next(cell for cell in found if (cell.arm, cell.condition) == (name, condition))


def put(runs: Path, cell: ArmCell, member: Member, value: float | None, **changes: Any) -> Record:
    """Stores a made-up record: `value` is its loss; None is a divergence."""
    state = "diverged" if value is None else "done"
    metrics = {} if value is None else {"loss": value, "validation_loss": value}
    about = {"initial": 5.5, "parameters": 100, "flops_per_token": 600.0, "tokens": 3072, "seconds": 1.0}
    record = Record(**{"member": member, "state": state, "arm_hash": cell.hash, "metrics": metrics, **about, **changes})
    directory = cell.directory(runs) / member.name
    directory.mkdir(parents=True, exist_ok=True)
    store.write_record(directory, record)
    return record


def fill(runs: Path, cell: ArmCell, loss: Callable[[Member], float | None], **changes: Any) -> None:
    """Stores a made-up record for every member the arm needs, until it needs no more."""
    while todo := store.todo(cell, store.read_arm(cell.directory(runs))[0]):
        for member in todo:
            put(runs, cell, member, loss(member), **changes)


@functools.cache
def _compiled(config: Config) -> tuple[Any, Any]:
    dataset = load_dataset(config)
    return make_program(config, dataset), dataset


def quick_run(cell: ArmCell, member: Member) -> float:
    """The final validation loss of a member, from the compiled steps alone: what `train` adds are files."""
    program, dataset = _compiled(cell.config)
    config, size = member.config(cell.config), program.max_steps_per_call
    feed = dataset.feed(config.data, config.train.batch_size, data_seed(config))
    resident = jnp.asarray(np.asarray(feed.resident))
    state, hyper = program.init(init_seed(config)), program.hyperparameters(config)
    for step in range(0, config.train.steps, size):
        chunk, count = feed.chunk(step, size), jnp.int32(min(size, config.train.steps - step))
        state, _ = program.train_steps(state, resident, chunk, jnp.int32(step), count, hyper)
    return evaluate(program, state, dataset, "validation")["loss"]


def without_clock(data: Mapping[str, Any]) -> dict[str, Any]:
    """Report data without what depends on the clock, the machine's load or the checkout."""
    plain = {k: v for k, v in data.items() if k != "provenance"}
    plain["arms"] = [
        {**arm, "members": [{**m, "seconds": None, "tokens_per_second": None} for m in arm["members"]]}
        for arm in data["arms"]
    ]
    plain["provenance"] = {k: v for k, v in data["provenance"].items() if k not in ("member_seconds", "git")}
    return plain
