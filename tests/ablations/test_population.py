"""An arm whose members are trained together: the same records, another identity, groups that memory holds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ablations import catalog, jobs, runner, store, worker
from ablations.__main__ import main
from ablations.cells import Member
from ablations.jobs import Job
from ablations.worker import SHARED, run_arm
from tests.ablations.lab import ablation, arm, write_config, write_text
from transformer.training import population
from transformer.training.jsonfiles import write_json
from transformer.training.run_directory import RunDirectory

HUGE = 1e30


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def make_job(folder: Path, text: Path, execution: str, **changes) -> Job:
    cell = arm(ablation(text, base={"execution": execution}, **{"size": {"train.steps": 12}, **changes}))
    job = Job(cell.directory(folder), (cell,))
    job.write()
    return job


RATES = {"rates": (1e-3, 1e-2, HUGE)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text) -> tuple[Job, list[int]]:
    """Three rates, one of them absurd, two test seeds and their twins; and the sizes of the populations."""
    sizes: list[int] = []
    job = make_job(tmp_path_factory.mktemp("runs"), text, "population", **RATES)
    with pytest.MonkeyPatch.context() as patch:
        init = population.Population.__init__

        def counting(self, program, size, *rest):
            sizes.append(size)
            init(self, program, size, *rest)

        patch.setattr(population.Population, "__init__", counting)
        assert run_arm(job.directory) == 0
    return job, sizes


def test_members_that_are_due_are_trained_together(trained):
    job, sizes = trained
    assert sizes == [3, 4]  # all rates, then the test seeds with their twins
    assert job.progress() == jobs.Progress(ended=7, known=7, todo=0)
    assert not (job.directory / SHARED).exists()


def test_records_are_those_of_members_trained_one_by_one(trained, tmp_path, text):
    job, _ = trained
    alone = make_job(tmp_path, text, "sequential", **RATES)
    assert alone.directory.name != job.directory.name  # never mixed
    assert run_arm(alone.directory) == 0
    ours, theirs = store.read_arm(job.directory)[0], store.read_arm(alone.directory)[0]
    assert ours.keys() == theirs.keys()
    assert ours[Member(HUGE, 1000)].state == "diverged"
    for member, record in ours.items():
        other = theirs[member]
        assert (record.state, record.diverged_at, record.tokens) == (other.state, other.diverged_at, other.tokens)
        assert record.initial == pytest.approx(other.initial, abs=1e-5)
        if record.state == "done":
            assert record.metrics["loss"] == pytest.approx(other.metrics["loss"], abs=1e-4)
            assert [point[0] for point in record.train_curve] == [point[0] for point in other.train_curve]


def test_a_population_that_was_begun_is_finished_first(tmp_path, text):
    job = make_job(tmp_path, text, "population", rates=(1e-2,), seeds=3)
    names = [Member(1e-2, 0, twin=True).name, Member(1e-2, 2).name]
    made = worker._Arm(job)
    made._prepare(Member(1e-2, 0))
    todo = job.todo({})
    assert made._together(todo) == todo
    (job.directory / SHARED).mkdir()
    write_json(job.directory / SHARED / population.MEMBERS, {"members": names})
    assert [member.name for member in made._together(todo)] == names
    write_json(job.directory / SHARED / population.MEMBERS, {"members": ["lr9-s9"]})
    assert made._together(todo) == todo and not (job.directory / SHARED).exists()


def test_what_memory_does_not_hold_at_once_is_split(tmp_path, text, monkeypatch):
    job = make_job(tmp_path, text, "population", rates=(1e-2,), seeds=3)
    made = worker._Arm(job)
    made._prepare(Member(1e-2, 0))
    monkeypatch.setattr(population, "available_bytes", lambda: [3 * population.bytes_per_member(made.program)])
    assert made._together(job.todo({})) == job.todo({})[:2]


def test_a_begun_population_waits_for_its_memory(tmp_path, text, monkeypatch):
    """Where others have taken some since, no member fails, and nothing of what was trained goes."""
    job = make_job(tmp_path, text, "population", rates=(1e-2,), seeds=2)
    breaking(monkeypatch, size=4, before=lambda configs, paths: sys.exit(75))  # preempted, once it has begun
    with pytest.raises(SystemExit):
        run_arm(job.directory)
    tried = breaking(monkeypatch, size=3)
    with pytest.raises(worker.Postponed, match=r"of 4 members, but the free memory holds 3 of them; free some and run"):
        run_arm(job.directory)
    assert tried == [] and job.progress().ended == 0 and (job.directory / SHARED / population.MEMBERS).is_file()


def test_a_population_that_breaks_is_recorded_for_every_member(tmp_path, text, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of <memory>")

    monkeypatch.setattr(population, "train_population", broken)
    job = make_job(tmp_path, text, "population", rates=(1e-2,), seeds=2)
    assert run_arm(job.directory) == 0
    records = store.read_arm(job.directory)[0]
    assert len(records) == 4 and {record.error for record in records.values()} == {"RuntimeError: out of <memory>"}


def breaking(monkeypatch, size: int, before=lambda configs, paths: None) -> list[list[str]]:
    """Populations of `size` members that have begun when they break; returns their members as they are tried."""
    tried: list[list[str]] = []

    def broken(configs, paths, directory, **_):
        tried.append([path.name for path in paths])
        assert len(tried) < 9, "the same members are trained again and again"
        directory.mkdir()
        write_json(directory / population.MEMBERS, {"members": tried[-1]})
        before(configs, paths)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(population, "train_population", broken)
    monkeypatch.setattr(population, "members_that_fit", lambda program: size)
    return tried


def test_members_of_a_population_that_broke_keep_no_others_waiting(tmp_path, text, monkeypatch):
    job = make_job(tmp_path, text, "population", rates=(1e-2,), seeds=2)
    names = [member.name for member in job.todo({})]
    tried = breaking(monkeypatch, size=3)
    assert run_arm(job.directory) == 0
    assert tried == [names[:3], names[3:]] and len(job.failed()) == 4


def test_what_failed_is_retried_from_the_start(tmp_path, text, monkeypatch):
    """Not from the checkpoint that its population left, before which its rows are gone."""
    job = make_job(tmp_path, text, "population", rates=(1e-2,), seeds=2)
    breaking(monkeypatch, size=4)
    assert run_arm(job.directory) == 0 and (job.directory / SHARED).is_dir()
    worker._Arm(job).forget_failed()
    assert not (job.directory / SHARED).exists() and len(job.todo({})) == 4


def test_another_population_that_was_begun_outlives_a_retry(tmp_path, text, monkeypatch):
    job = make_job(tmp_path, text, "population", rates=(1e-2,), seeds=2)
    breaking(monkeypatch, size=4)
    assert run_arm(job.directory) == 0
    write_json(job.directory / SHARED / population.MEMBERS, {"members": ["lr9-s9"]})
    worker._Arm(job).forget_failed()
    assert (job.directory / SHARED).is_dir()


def test_a_divergence_outlives_what_broke_the_population_later(tmp_path, text, monkeypatch):
    def diverge(configs, paths):
        with RunDirectory.open(paths[1], configs[1]) as run:
            run.set_status("diverged", step=3, diverged_at=3, fingerprint="f", initial_loss=5.5)

    job = make_job(tmp_path, text, "population", rates=(1e-2,), seeds=2)
    tried = breaking(monkeypatch, size=4, before=diverge)
    assert run_arm(job.directory) == 0 and len(tried) == 1
    states = {member.name: record.state for member, record in store.read_arm(job.directory)[0].items()}
    assert states == {name: "diverged" if name == tried[0][1] else "failed" for name in tried[0]}


# --- The choice on the command line ------------------------------------------------------------------------------


def test_the_command_line_chooses_and_auto_asks_for_an_accelerator(configs, text, tmp_path, monkeypatch, capsys):
    write_config(configs, ablation(text))
    seen: list[str] = []
    monkeypatch.setattr(runner.Pool, "run", lambda self, found: seen.append(found[0].cell.config.execution) or 130)
    command = ["run", "tiny", "--profile=tiny", f"--configs={configs}", f"--runs={tmp_path / 'runs'}"]
    for more in ([], ["--execution=population"], ["--execution=sequential"]):
        assert main([*command, *more]) == 130
    monkeypatch.setattr(runner, "_accelerated", lambda: True)
    assert main(command) == 130
    assert seen == ["sequential", "population", "sequential", "population"]
    with pytest.raises(SystemExit):
        main([*command, "--execution=both"])
    catalog.execute("")


def test_a_config_that_says_how_keeps_its_word(configs, text):
    write_config(configs, ablation(text, base={"execution": "population"}))
    catalog.execute("sequential")
    assert catalog.load("tiny").base["execution"] == "population"
    catalog.execute("")
