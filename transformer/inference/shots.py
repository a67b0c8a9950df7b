"""Learning in context: how good answers become as examples accumulate in the row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.data.batch import Batch
from transformer.errors import UserError
from transformer.inference.checks import CHECKS, Subject
from transformer.training.evaluation import rows_per_batch
from transformer.training.objectives import OBJECTIVES, CausalLM
from transformer.training.step import TrainState


@CHECKS.register("shots")
def check_shots(subject: Subject) -> dict[str, Any]:
    """Accuracy of the answers that count, by the number of examples before them in the row (Brown et al. 2020)."""
    run, dataset = subject.run, subject.dataset
    task: Any = getattr(dataset, "task", None)
    if not hasattr(task, "examples_before") or not isinstance(run.program.objective, CausalLM):
        raise UserError(
            "--checks=shots needs a decoder trained on examples in context: data.source=task with data.task=icl_map or "
            f"icl_linear, and objective.kind=in_context or clm; this run read {dataset.name}."
        )
    by_place: Any = OBJECTIVES.build("clm", run.config, run.vocabulary)

    @jax.jit
    def measure(state: TrainState, batch: Batch) -> tuple[jax.Array, jax.Array]:
        losses = by_place.losses(run.program.model(state), batch, None, train=False)
        weights_BT = jnp.ones_like(losses.nll_BT) if losses.weights_BT is None else losses.weights_BT
        return (losses.correct_BT * weights_BT).sum(0), weights_BT.sum(0)

    batch_size = rows_per_batch(run.config)
    parts = [measure(run.state, batch) for batch in dataset.batches(subject.split, batch_size)]
    right_T, counted_T = np.array(parts, np.float64).sum(axis=0)
    shots_T = task.examples_before(1 + np.arange(len(counted_T)))  # the first token is no target
    right_N, counted_N = np.bincount(shots_T, right_T), np.bincount(shots_T, counted_T)
    found = {f"after_{n}_examples": float(right_N[n] / counted_N[n]) for n in np.flatnonzero(counted_N)}
    return {**found, "chance": dataset.chance(subject.split)}
