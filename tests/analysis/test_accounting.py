"""The command and what it is made of: a report for any config, nothing allocated, a quick count for a run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.tiny import OVERRIDES, nested, tiny
from transformer import Config
from transformer.analysis import accounting
from transformer.config import resolve
from transformer.training.step import Program

ROOT = Path(__file__).resolve().parents[2]


def test_components_of_a_known_model():
    program = accounting.make_program(resolve(nested(OVERRIDES)))
    assert accounting.parameters_by_component(program.abstract_state.params) == {
        "embedding": 11 * 16,
        "attention": 2 * 4 * 16 * 16,
        "ffn": 2 * 8 * 16 * 16,
        "norm": 5 * 16,
    }


def test_shapes_are_those_of_a_drawn_state():
    program = accounting.make_program(tiny({"model.norm.kind": "batchnorm"}))
    drawn = jax.eval_shape(lambda: program.init(0))
    assert jax.tree.structure(drawn) == jax.tree.structure(program.abstract_state)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), drawn, program.abstract_state)
    assert jax.tree.all(same)


def test_a_huge_model_is_counted_without_memory():
    """1.6T parameters: drawing them would end the test."""
    config = tiny({"model.d_model": 2**17, "model.num_layers": 8, "model.attention.num_heads": 1024})
    components = accounting.parameters_by_component(accounting.make_program(config).abstract_state.params)
    assert components["ffn"] == 8 * 8 * 2**34
    assert accounting.train_flops_per_token(config) > 6 * components["ffn"]


def test_counting_a_run_costs_little_of_its_start():
    """At most twice the tracing and lowering of one step, which is compiled after that. In CPU time, the best of three,
    because other things run beside a test."""

    def seconds(work: Callable[[Program], Any]) -> float:
        program = Program(Config(), 260, np.ones(260, np.int32))
        started = time.process_time()
        work(program)
        return time.process_time() - started

    def lower(program: Program) -> None:
        hyper = program.hyperparameters(program.config)
        jax.jit(program.train_step).lower(program.abstract_state, program.abstract_batch, np.int32(0), hyper)

    counted, lowered = zip(*((seconds(accounting.train_operations), seconds(lower)) for _ in range(3)), strict=True)
    assert min(counted) < 2 * min(lowered), (counted, lowered)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "transformer.analysis.accounting", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_command_shows_every_table():
    done = run("--config=configs/base.py", "--config.model.d_model=64", "--config.model.ffn.kind=swiglu")
    assert done.returncode == 0, done.stderr
    program = accounting.make_program(resolve({"model": {"d_model": 64, "ffn": {"kind": "swiglu"}}}))
    for name, size in accounting.parameters_by_component(program.abstract_state.params).items():
        assert f"│ {name}" in done.stdout and f"{size:,}" in done.stdout
    assert f"{accounting.train_operations(program).products:,.0f}" in done.stdout
    assert f"{accounting.forward_operations(program).products:,.0f}" in done.stdout
    assert "keys and values of one window" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--config=FILE is required"),
        (["--config=configs/base.py", "--config.model.d_mode=3"], 'no config field "model.d_mode". Did you mean'),
        (["--config=configs/base.py", "--config.model.d_model=63"], "model.d_model=63 is not divisible by"),
    ],
)
def test_the_command_says_what_is_wrong(flags, words):
    done = run(*flags)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("overrides", [{"model.attention.mask": "none"}, {"model.family": "encoder"}])
def test_the_report_leaves_out_a_cache_that_cannot_be(overrides):
    config = tiny({**overrides, "model.vocab_size": 300})
    titles = {row[0] for table in accounting.report(config) for row in table[2]}
    assert "kept for the backward pass" in titles and "keys and values of one window" not in titles


@pytest.mark.parametrize(
    ("size", "words"), [(512, "512 B"), (1.5 * 2**20, "1.5 MiB"), (326e9, "304 GiB"), (2.8e12, "2.55 TiB")]
)
def test_bytes_are_shown_in_units(size, words):
    assert accounting.human_bytes(size) == words
