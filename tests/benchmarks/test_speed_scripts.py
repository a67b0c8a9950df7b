"""The tables of the speed benchmarks say what their numbers say, and what cannot be measured here is refused."""

from __future__ import annotations

import pytest

from benchmarks import arm, gpu, population


def test_the_arm_is_compared_with_its_steps_alone():
    start = dict.fromkeys(arm.PARTS, 0.5)
    found = {
        "cold": [start, {**start, "compile": 3.5}, {**start, "compile": 4.5}],
        "warm": [start] * 3,
        "arm": {"wall": 100.0, "ratio": 1.07, "step_seconds": [0.01, 0.01, 0.5], "walls": []},
        "members": 32,
        "steps": 240,
    }
    starts, members = arm.tables(found)
    assert starts.rows[0] == ("cold", "0.50", "0.50", "0.50", "0.50", "3.50", "5.50")
    assert starts.rows[1][-1] == "2.50"
    assert members.rows == (("arm", "100.0", "10.00", "76.8", "1.07", "1.10"),)


def test_an_arm_of_one_member_is_refused(capsys):
    with pytest.raises(SystemExit):
        arm.main(["--members=1"])
    assert "--members must be at least 2" in capsys.readouterr().err


def test_populations_are_compared_with_one_member():
    found = {
        "seconds": {0: [1.0, 1.0, 9.0], 4: [2.0, 2.0, 2.0]},
        "tokens_per_member": 1000,
        "flops_per_token": 5e6,
        "matrix_flops": 1e11,
    }
    (table,) = population.tables(found)
    assert table.rows[0] == ("one member", "1,000", "1.00", "5.0%")
    assert table.rows[1] == ("together, K = 4", "2,000", "2.00", "10.0%")


def test_the_gpu_benchmark_is_refused_on_a_cpu(capsys):
    assert gpu.main([]) == 2
    assert "needs an accelerator" in capsys.readouterr().err


def test_the_gpu_benchmarks_step_runs_on_any_machine():
    assert gpu.ours(gpu.config("tiny", length=16, backend="reference"))() > 0


def test_shares_of_the_ceiling():
    found = {"ceiling": 1e12, "shapes": {"124m": {"seconds": {"ours": [1.0], "torch": [2.0]}}}}
    found["shapes"]["124m"] |= {"tokens": 500, "flops_per_token": 1e9}
    (table,) = gpu.tables(found)
    assert table.rows == (("124m ours", "500", "50.0%", "2.00"), ("124m torch", "250", "25.0%", "1.00"))
