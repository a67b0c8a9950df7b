"""The tables of the speed benchmarks say what their numbers say, and what cannot be measured here is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from typing import ClassVar

import numpy as np
import pytest

from ablations import formulas
from benchmarks import arm, gpu, norm, population
from tests.ablations.lab import SIZE, write_text
from transformer.config import apply_overrides, default_config, replace, resolve


def test_the_arm_is_compared_with_its_steps_alone():
    start = dict.fromkeys(arm.PARTS, 0.5)
    found = {
        "cold": [start, {**start, "compile": 3.5}, {**start, "compile": 4.5}],
        "warm": [start] * 3,
        "alone": {
            **{"wall": 100.0, "walls": [9.0, 3.0, 3.0], "evaluating": [1.0, 0.6, 0.6]},
            **{"step_seconds": [0.010, 0.008, 0.012]},
        },
        "lab": {
            **{"wall": 85.5, "members": 40, "workers": 2},
            **{"step_seconds": [0.010, 0.008, 0.020], "side_by_side": [0.015, 0.016, 0.016]},
        },
        "steps": 240,
    }
    starts, members = arm.tables(found)
    assert starts.rows[0] == ("cold", "0.50", "0.50", "0.50", "0.50", "3.50", "5.50")
    assert starts.rows[1][-1] == "2.50"
    alone, lab = members.rows
    assert alone[1:5] == ("3", "100.0", "10.0 [9.0, 11.0]", "2.2")
    assert alone[5:7] == ("1.25 [1.15, 1.41]", "1.00 [0.92, 1.12]")
    assert lab[:4] == ("the lab, 2 workers", "40", "85.5", "10.0 [9.0, 15.0]")
    assert lab[5:] == ("0.83 [0.62, 0.94]", "", "1.04", "1.10")


@pytest.mark.parametrize("members", [1, 6])
def test_an_arm_of_another_number_of_members_is_refused(capsys, members):
    with pytest.raises(SystemExit):
        arm.main([f"--members={members}"])
    assert "--members must be a multiple of 4" in capsys.readouterr().err


class FakeTimers:
    """Takes a while, in which no worker may run."""

    stopped: ClassVar[set[int]] = set()

    def __init__(self, steps, cache, shares):
        self.alone, self.side_by_side, self.workers = [], [], []

    def measure(self):
        time.sleep(0.5)
        self.alone.append(0.01)
        self.workers.append(set(self.stopped))

    @classmethod
    def signalled(cls, process, number):
        """In place of `Popen.send_signal`."""
        {signal.SIGSTOP: cls.stopped.add, signal.SIGCONT: cls.stopped.discard}[number](process.pid)
        os.kill(process.pid, number)

    def close(self):
        assert len(self.workers) > 3 and all(self.workers[1:-1]) and not self.stopped


def test_the_lab_trains_every_rate_on_every_seed(monkeypatch, tmp_path):
    """And ends with the best of them once more, under a seed of its own. Steps are timed while the workers wait, which
    is no part of their time."""
    small = {**SIZE, "data.path": str(write_text(tmp_path / "text.txt")), "wandb.mode": "disabled"}
    config = resolve(apply_overrides(default_config(), small))
    monkeypatch.setattr(arm, "arm_config", lambda steps: replace(config, {"train.steps": steps}))
    monkeypatch.setattr(arm, "RATES", (1e-5, 1e-2, 1e3))
    monkeypatch.setattr(arm, "Timers", FakeTimers)
    monkeypatch.setattr(subprocess.Popen, "send_signal", lambda *arguments: FakeTimers.signalled(*arguments))
    monkeypatch.setattr(arm, "SECONDS_BETWEEN", 1)
    started = time.perf_counter()
    found = arm.train_in_the_lab(6, 2, "")
    assert found["members"] == 7 and found["workers"] >= 1
    pauses = 0.5 * (len(found["step_seconds"]) - 2)  # the first came before the start, the last after the end
    assert 0 < found["wall"] < time.perf_counter() - started - pauses


def test_populations_are_compared_with_one_member():
    found = {
        "shape": "4 layers x 128, 64 tokens, batch 8, float32",
        "seconds": {0: [1.0, 1.0, 9.0], 4: [2.0, 2.0, 2.0]},
        "tokens_per_member": 1000,
        "flops_per_token": 5e6,
        "matrix_flops": 1e11,
    }
    (table,) = population.tables(found)
    assert table.rows[0] == ("one member", "1,000", "1.00", "5.0%")
    assert table.rows[1] == ("together, K = 4", "2,000", "2.00", "10.0%")
    assert table.title == "Members of one arm: 4 layers x 128, 64 tokens, batch 8, float32"


def test_the_model_of_a_population_can_be_changed(capsys):
    arguments = ["data.sequence_length=16", "train.batch_size=2", "model.d_model=32", "model.num_layers=1"]
    found = population.measure([2], 1, 1, arguments)
    assert found["shape"] == "1 layers x 32, 16 tokens, batch 2, float32" and found["tokens_per_member"] == 32
    assert {len(walls) for walls in found["seconds"].values()} == {1}
    capsys.readouterr()
    assert population.main(["model.d_modle=32"]) == 2
    assert "model.d_model" in capsys.readouterr().err


def test_what_is_saved_is_a_ratio_of_medians_with_an_interval():
    base, faster = [1.0, 1.1, 0.9, 1.0, 5.0] * 6, [0.7, 0.8, 0.6, 0.7, 9.0] * 6
    found = norm.saved(base, faster, np.random.default_rng(0))
    assert found["saved"] == pytest.approx(30.0) and 0 < found["low"] < 30.0 < found["high"] < 60.0
    assert norm.saved(base, base, np.random.default_rng(0))["saved"] == 0.0


def test_every_norm_takes_its_turn_in_every_round():
    calls: list[str] = []
    sides = {name: (lambda n=name: float(len(calls.append(n) or calls))) for name in norm.KINDS}
    found = norm.interleaved(sides, 4, random.Random(0))
    rounds = [set(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert rounds == [set(norm.KINDS)] * (norm.WARM_UP + 4) and {len(v) for v in found.values()} == {4}


def test_the_speed_of_a_norm_is_measured_and_decides_the_claim(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(norm, "STEPS", {})
    stored = tmp_path / "benchmarks" / "results" / "norm.json"
    assert norm.main(["--widths=8", "--rounds=3", f"--json={stored}"]) == 0
    assert "norm alone, 8 wide" in capsys.readouterr().out
    monkeypatch.setattr(formulas, "ROOT", tmp_path)
    measured = json.loads(stored.read_text())["numbers"]["norm alone, 8 wide"]["rmsnorm"]["saved"]
    numbers = formulas.evaluate("rmsnorm_speed").numbers
    assert [n.claimed for n in numbers] == [30, 15] and {n.measured for n in numbers} == {measured}


def test_the_gpu_benchmark_is_refused_on_a_cpu(capsys):
    assert gpu.main([]) == 2
    assert "needs an accelerator" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["--shapes=350M", "--peer=125m"])
def test_a_shape_that_there_is_not_is_refused(argument, capsys):
    with pytest.raises(SystemExit):
        gpu.main([argument])
    assert f"{argument} is not one of: " in capsys.readouterr().err


def test_the_gpu_benchmarks_step_runs_on_any_machine():
    assert gpu.ours(gpu.config("tiny", length=16, backend="reference"))() > 0


def test_shares_of_the_ceiling():
    found = {"ceiling": 1e12, "shapes": {"124m": {"seconds": {"ours": [1.0], "torch": [2.0]}}}}
    found["shapes"]["124m"] |= {"tokens": 500, "flops_per_token": 1e9}
    (table,) = gpu.tables(found)
    assert table.rows == (("124m ours", "500", "50.0%", "2.00"), ("124m torch", "250", "25.0%", "1.00"))
