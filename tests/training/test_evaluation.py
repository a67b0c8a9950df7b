"""Evaluation over many batches in one call."""

import jax
import numpy as np
import pytest

from transformer.config import apply_overrides, default_config, resolve
from transformer.training import evaluation, run
from transformer.training.evaluation import add_up, evaluate, whole_batches
from transformer.training.step import BATCHES_PER_CALL, EvalSums

BATCH, LENGTH, BATCHES = 3, 16, 2 * BATCHES_PER_CALL + 5
TOKENS = BATCH * LENGTH * (BATCHES - 1) + 7  # the last batch is not full


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def subject(request):
    """The encoder's targets are drawn anew for every row of the split."""
    change = {"data.sequence_length": LENGTH, "eval.batch_size": BATCH, "model.d_model": 16, "model.num_layers": 1}
    change |= {"model.attention.num_heads": 2, "model.family": request.param}
    config = resolve(apply_overrides(default_config(), change))
    dataset = run.load_dataset(config)
    program = run.make_program(config, dataset)
    return program, program.init(0), dataset


def test_calls_of_any_size_give_the_same_bits(subject, monkeypatch):
    """How many batches a call takes depends on how fast they are, which must not change a result."""
    program, state, dataset = subject
    sizes = []
    monkeypatch.setattr(program, "evaluate", counted(program.evaluate, sizes))
    results = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(evaluation, "SECONDS_PER_CALL", seconds)
        results.append(evaluate(program, state, dataset, "validation", TOKENS))
    assert sizes == [1] * BATCHES + [1, BATCHES_PER_CALL, BATCHES_PER_CALL, 4]
    assert results[0] == results[1]


def test_a_call_sums_each_batch_as_it_is_summed_alone(subject):
    program, state, dataset = subject
    alone = jax.jit(program.evaluate_batch)
    totals = [alone(state, batch, i * BATCH) for i, batch in enumerate(dataset.batches("validation", BATCH, TOKENS))]
    total = EvalSums(*[np.sum(np.array(sums, np.float64), axis=0) for sums in zip(*totals, strict=True)])
    result = evaluate(program, state, dataset, "validation", TOKENS)
    assert result["loss"] == pytest.approx(total.nll_T.sum() / total.weight_T.sum(), rel=1e-6)
    assert result["accuracy"] == pytest.approx(total.correct_T.sum() / total.weight_T.sum())
    assert result["eval_tokens"] == total.weight_T.sum() > 0
    assert program.config.model.family == "encoder" or result["eval_tokens"] == TOKENS


def test_the_whole_split_goes_on_where_a_subset_of_whole_batches_ended(subject):
    program, state, dataset = subject
    begun = add_up(program, state, dataset, "validation", 20 * BATCH * LENGTH)
    assert begun.batches == 20 and whole_batches(program.config, dataset, 20 * BATCH * LENGTH)
    assert add_up(program, state, dataset, "validation", TOKENS, begun).means() == [
        evaluate(program, state, dataset, "validation", TOKENS)
    ]
    assert not whole_batches(program.config, dataset, TOKENS)
    partly = add_up(program, state, dataset, "validation", TOKENS - 3)
    assert add_up(program, state, dataset, "validation", TOKENS, partly).means() == partly.means()  # nothing is left


def counted(function, sizes):
    """The function, which notes how many batches it is asked for."""

    def call(state, batches, first_rows, count):
        sizes.append(int(count))
        return function(state, batches, first_rows, count)

    return call
