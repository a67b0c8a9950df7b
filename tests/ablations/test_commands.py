"""Every command of the lab, through its front door."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ablations import catalog, checks, claims, commands, committed, explain, jobs, push, store, summary
from ablations.__main__ import main
from ablations.cells import Member
from ablations.evidence import ExactCheck
from ablations.schema import Contrast
from ablations.worker import run_arm
from tests.ablations.lab import WORSE, ablation, arm, fill, put, write_config, write_text
from transformer.errors import UserError
from transformer.training.run_directory import read_rows

CHECK = "tests/claims/test_causal_mask.py::TestBlocksFuture"
MADE = ablation(
    "no.txt",
    rates=(1e-2,),
    seeds=8,
    contrasts=(WORSE, Contrast("causal_mask_blocks_future", "exact", check=CHECK)),
)


@pytest.fixture(autouse=True)
def unchanged(monkeypatch):
    """Whatever a command chooses for this process is chosen for one test only."""
    monkeypatch.setattr(catalog, "_folder", catalog.CONFIGS)
    monkeypatch.setattr(catalog, "_added", {})
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def lab(tmp_path):
    """Runs a command on a folder with one ablation and made-up records: `lab("status", "tiny")`."""
    folder = tmp_path / "configs"
    write_config(folder, MADE)
    for name, offset in (("base", 0.0), ("other", 0.2)):
        fill(
            tmp_path / "runs",
            arm(MADE, name),
            lambda m, offset=offset: 2.0 + offset * (1 + 0.01 * (m.seed % 3)) + 0.01 * m.seed,
            contrasts=jobs.registered("tiny", MADE),
        )

    def run(command: str, *arguments: str) -> int:
        places = [f"--configs={folder}"] + ([f"--runs={tmp_path / 'runs'}"] if command != "list" else [])
        return main([command, *arguments, *places])

    return run


# --- list, status ------------------------------------------------------------------------------------------------


def test_list_shows_questions_and_profiles(lab, capsys):
    assert lab("list") == 0
    assert capsys.readouterr().out.split() == f"tiny {MADE.question} profiles: tiny".split()


def test_list_of_this_repository(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said and catalog.load(name).question in said for name in catalog.names())


def test_list_of_claims(capsys):
    assert main(["list", "--kind=exact"]) == 0
    said = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in said if line.startswith("  causal_mask_blocks_future "))
    assert row[-1] == "tests/claims/test_causal_mask.py::TestBlocksFuture"
    exact = sum(claim.kind == "exact" for claim in claims.load().values())
    assert said[-1].startswith(f"{exact} claims: ")
    assert main(["list", "--kind=performance"]) == 0
    assert capsys.readouterr().out.splitlines()


def test_list_runs_what_decides_and_tells_what_came_out(tmp_path, capsys, monkeypatch):
    found = {"zero3_share": ["zero3_share"], "allreduce_volume": ["allreduce_volume"]}
    monkeypatch.setattr(checks, "discover", lambda: found)
    arguments = ["list", "--kind=accounting", f"--runs={tmp_path}"]
    assert main(arguments) == 0
    assert "not run" in capsys.readouterr().out
    assert main([*arguments, "--run"]) == 0 and main(arguments) == 0  # kept for the next time
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert rows.count(["zero3_share", "supported"]) == rows.count(["allreduce_volume", "refuted"]) == 2
    assert main(["explain", "allreduce_volume", f"--runs={tmp_path}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "refuted: allreduce_volume" in said and "699.3" in said


def test_status_counts_members(lab, tmp_path, capsys):
    cell = arm(MADE, "other")
    put(tmp_path / "runs", cell, Member(1e-2, 1), None)
    path = cell.directory(tmp_path / "runs") / "lr0.01-s2" / store.RECORD
    path.write_text(path.read_text().replace('"seconds": 1.0', '"seconds": 2.0'))
    assert lab("status", "--profile=tiny") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == [
        "tiny",
        "tiny",
        "planned",
        "24",
        "done",
        "22",
        "diverged",
        "1",
        "failed",
        "0",
        "missing",
        "1",
    ]
    assert said[1].strip() == f"changed by hand, not used: {cell.directory(tmp_path / 'runs').name}/lr0.01-s2"


# --- report, explain ---------------------------------------------------------------------------------------------


def test_report_judges_and_writes_the_page(lab, tmp_path, capsys):
    assert lab("report", "tiny", "--profile=tiny", f"--out={tmp_path / 'out'}") == 0
    said = capsys.readouterr().out
    assert MADE.question in said and "supported: " in said and "other against base on loss: supported" in said
    pages = list((tmp_path / "out").rglob("*.html"))
    assert pages and any(MADE.question in page.read_text() for page in pages)


def test_explain_tells_the_whole_story(lab, capsys):
    assert lab("explain", "layernorm_removal") == 0
    said = capsys.readouterr().out
    for part in (
        "said: ",
        "planned as: ",
        "registered in tiny: ",
        "literature: ",
        "expected before any run: ",
        "\ntiny: supported\n",
    ):
        assert part in said
    assert "At tiny scale" in said and "page: python -m ablations report tiny --profile=tiny" in said


def test_explain_of_every_kind_of_claim(tmp_path, monkeypatch):
    """One that a budget leaves out, a control, and one that only budgets without verdicts ask among them."""
    monkeypatch.setattr(catalog, "names", lambda: ["controls", "decoding", "no_ffn"])
    monkeypatch.setattr(committed, "kept", lambda: [])
    judged = functools.cache(lambda name: list(real(name, catalog.load(name), tmp_path)))
    real = explain._judged
    monkeypatch.setattr(explain, "_judged", lambda name, *_: judged(name))
    asked = {contrast.claim: name for name in catalog.names() for contrast in catalog.load(name).contrasts}
    assert {"ffn_removal_catastrophic", "halved_width_is_detected", "temperature_entropy"} <= asked.keys()
    for claim, name in asked.items():
        told = [line for line, _ in explain.lines(claim, tmp_path)]
        assert any(line.startswith(f"registered in {name}: ") for line in told), claim
        assert told[-1].startswith(("  run again: ", f"not measured yet: python -m ablations run {name}")), claim


def test_explain_of_what_no_config_asks(lab, capsys):
    assert lab("explain", "rmsnorm_quality_equal") == 0
    assert "no config asks this yet; it belongs to the ablation" in capsys.readouterr().out


def test_explain_of_what_was_not_measured(lab, tmp_path, capsys):
    shutil.rmtree(tmp_path / "runs")
    assert lab("explain", "layernorm_removal") == 0
    assert "not measured yet: python -m ablations run tiny" in capsys.readouterr().out


def test_explain_of_an_exact_claim_waits_for_its_check(lab, tmp_path, capsys, monkeypatch):
    assert lab("explain", "causal_mask_blocks_future") == 0
    assert "not measured yet" in capsys.readouterr().out
    monkeypatch.setattr(checks, "results", lambda runs: {CHECK: ExactCheck(True, True)})
    assert lab("explain", "causal_mask_blocks_future") == 0
    assert "\ntiny: supported\n" in capsys.readouterr().out


# --- diff --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A real ablation of two arms, one seed each, trained; its folder and its jobs."""
    folder = tmp_path_factory.mktemp("trained")
    made = ablation(write_text(folder / "text.txt"), rates=(1e-2,), seeds=1, size={"train.steps": 4})
    write_config(folder / "configs", made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "_folder", folder / "configs")
        found = jobs.collect(["tiny"], "tiny", folder / "runs")
    for job in found:
        job.write()
        assert run_arm(job.directory) == 0
    return folder, found


def test_diff_of_two_runs(trained, capsys):
    _, (base, other) = trained
    first, second = (str(job.directory / "lr0.01-s0") for job in (base, other))
    assert main(["diff", first, second]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "model.norm.kind: 'layernorm' -> 'none'" in said
    assert any(line.startswith("parameters only base: ") and "norm" in line for line in said)
    assert any(line.startswith("validation_loss: ") and " -> " in line for line in said)
    assert not any(line.startswith("init changed") for line in said)  # common weights start alike
    assert main(["diff", first, first]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["diff", first, str(base.directory / "lr0.01-s0-twin")]) == 0
    assert any(line.startswith("init changed") for line in capsys.readouterr().out.splitlines())


# --- run, try ----------------------------------------------------------------------------------------------------


def test_try_answers_a_question_of_ones_own(tmp_path, capsys):
    """The one test that goes the whole way from the command line: plan, lint, workers, verdict, page."""
    places = [f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    assert main(["try", "model.norm.kind=rmsnorm", "model.num_layers=1", "--profile=smoke", *places]) == 0
    said = capsys.readouterr()
    assert "What if model.norm.kind=rmsnorm, model.num_layers=1?" in said.out
    assert "the smoke profile gives no verdicts" in " ".join(said.out.split()) and "inconclusive" in said.out
    assert "members 4/4" in said.err
    (page,) = [line.removeprefix("page: ") for line in said.out.splitlines() if line.startswith("page: ")]
    assert Path(page).is_file()
    states = [json.loads(path.read_text())["state"] for path in (tmp_path / "runs").rglob(store.RECORD)]
    assert states == ["done"] * 4


def test_a_finished_run_trains_nothing_and_reports_again(lab, tmp_path, capsys, monkeypatch):
    ran = ExactCheck(True, True)
    monkeypatch.setattr(checks, "run", lambda wanted, *_: dict.fromkeys(wanted, ran))
    monkeypatch.setattr(commands.Pool, "_start", pytest.fail)
    assert lab("run", "tiny", "--profile=tiny", f"--out={tmp_path / 'out'}") == 0
    assert "supported" in capsys.readouterr().out


def test_a_stopped_run_says_how_to_go_on(lab, capsys, monkeypatch):
    monkeypatch.setattr(checks, "run", lambda wanted, *_: dict.fromkeys(wanted, ExactCheck(True, True)))
    monkeypatch.setattr(commands.Pool, "run", lambda self, jobs: 130)
    assert lab("run", "tiny", "--profile=tiny") == 130
    assert "the same command goes on from here" in capsys.readouterr().err


# --- Users' slips ------------------------------------------------------------------------------------------------

SLIPS = {
    "unknown ablation": (["plan", "tyni"], "There is no ablation 'tyni'; there are: tiny. Did you mean \"tiny\"?"),
    "unknown among several": (["status", "tiny", "x", "--profile=tiny"], "There is no ablation 'x'"),
    "profile the named one lacks": (["run", "tiny"], "Unknown profile 'quick'; it is one of: tiny."),
    "same for report": (["report", "tiny", "--profile=tinny"], "Unknown profile 'tinny'; it is one of: tiny. Did you"),
    "same for plan": (["plan", "tiny"], "Unknown profile 'quick'"),
    "same for status": (["status", "tiny"], "Unknown profile 'quick'"),
    "same for push": (["push", "tiny"], "Unknown profile 'quick'"),
    "profile nobody has": (["status", "--profile=quik"], "No ablation has the profile 'quik'"),
    "unknown claim": (
        ["explain", "layernorm_removel"],
        'Unknown claim "layernorm_removel". Did you mean "layernorm_removal"',
    ),
    "no run": (["diff", "no/such", "no/such"], "holds no run"),
    "workers": (["run", "tiny", "--profile=tiny", "--workers=-1"], "--workers=-1 must be at least 1"),
    "try without value": (["try", "model.norm.kind"], "'model.norm.kind' is not FIELD=VALUE"),
    "try unknown field": (["try", "model.norm.kimd=x"], 'There is no config field "model.norm.kimd". Did you mean'),
    "try unknown kind": (["try", "model.norm.kind=rsmnorm"], 'Did you mean "rmsnorm"'),
    "try nothing new": (["try", "model.norm.kind=layernorm"], "differs from the baseline in no field"),
    "try the seed": (["try", "seed=3"], "no field"),
    "nothing to run": (["list", "--kind=training", "--run"], "--run needs --kind=exact or --kind=accounting"),
    "configs": (["list", "--configs=no/such"], "--configs=no/such is not a folder"),
}


@pytest.mark.parametrize(("arguments", "message"), SLIPS.values(), ids=SLIPS)
def test_a_users_slip_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(checks, "run", lambda wanted, *_: dict.fromkeys(wanted, ExactCheck(True, True)))
    write_config(tmp_path / "configs", MADE)
    if arguments[0] != "diff":
        arguments = [arguments[0], f"--configs={tmp_path / 'configs'}", *arguments[1:]]
    if arguments[0] not in ("diff", "list"):
        arguments.append(f"--runs={tmp_path / 'runs'}")
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and message in said.err and said.err.count("\n") == 1
    assert not said.out and not list((tmp_path / "runs").rglob("lr*"))


def test_a_runs_folder_that_cannot_be_is_refused_before_anything_is_checked(tmp_path, configs, capsys, monkeypatch):
    monkeypatch.setattr(checks, "run", None)
    write_config(configs, MADE)
    (tmp_path / "file").write_text("")
    command = ["run", "tiny", "--profile=tiny", f"--configs={configs}", f"--runs={tmp_path / 'file' / 'runs'}"]
    assert main(command) == 2
    assert "file/runs cannot be made: Not a directory; give another folder." in capsys.readouterr().err


def test_an_interrupt_outside_training_is_one_line(tmp_path, configs, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "run", interrupted)
    write_config(configs, MADE)
    assert main(["run", "tiny", "--profile=tiny", f"--configs={configs}", f"--runs={tmp_path / 'runs'}"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("stopped; what was finished is kept")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ABLATION = 3", "ablation_tiny.py does not define ABLATION = Ablation(...)"),
        ("import", "ablation_tiny.py cannot be loaded: SyntaxError"),
        ("1 / 0", "ablation_tiny.py cannot be loaded: ZeroDivisionError: division by zero"),
        (
            "from ablations.schema import *\nABLATION = Ablation(question='?', arms={})",
            "ablation_tiny.py: An ablation needs at least one arm.",
        ),
    ],
)
def test_a_config_that_cannot_be_loaded_is_named(tmp_path, capsys, text, message):
    (tmp_path / "ablation_tiny.py").write_text(text)
    assert main(["list", f"--configs={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["runn"], ["run"], ["plan"], ["explain"], ["list", "--kind=x"]])
def test_a_command_line_that_makes_no_sense_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "usage: python -m ablations" in capsys.readouterr().err


# --- push --------------------------------------------------------------------------------------------------------


def inspect(record: Path) -> list[dict]:
    """The records that W&B's own reader finds in an offline run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(records: list[dict]) -> list[dict]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


@pytest.fixture(scope="module")
def pushed(trained):
    """The store sent to offline records."""
    folder, found = trained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "_folder", catalog.CONFIGS)
        patch.setenv("WANDB_MODE", "offline")
        places = [f"--configs={folder / 'configs'}", f"--runs={folder / 'runs'}"]
        assert main(["push", "tiny", "--profile=tiny", *places]) == 0
    return folder, found


def test_push_rebuilds_the_rows_of_the_store(pushed):
    """Same (step, loss) pairs, in order, none twice; one W&B run a member."""
    _, found = pushed
    members = [path for job in found for path in sorted(job.directory.glob("lr*"))]
    records = {path: list((path / "wandb").glob("offline-run-*")) for path in members}
    assert len(members) == 3 and all(len(made) == 1 for made in records.values())
    path = members[0]
    inspected = inspect(records[path][0])
    logged = [
        (item["step"], name.removesuffix("/loss"), item[name])
        for item in history(inspected)
        for name in item
        if name.endswith("/loss")
    ]
    assert logged == [(row["step"], row["split"], row["loss"]) for row in read_rows(path)]
    assert len(logged) >= 4
    (run,) = [record["run"] for record in inspected if record["type"] == "run"]
    assert run["run_group"] == "tiny-tiny" and run["job_type"] == "base" and run["display_name"] == "base-lr0.01-s0"


def test_push_sends_the_verdicts_with_their_table_and_the_page(pushed):
    folder, _ = pushed
    (record,) = (folder / "runs" / "verdicts" / "tiny-tiny" / "wandb").glob("offline-run-*")
    found = {name for item in history(inspect(record)) for name in item}
    assert any(name.startswith("verdicts") for name in found) and any(name.startswith("page") for name in found)
    (table,) = record.rglob("*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == list(push.COLUMNS)
    (row,) = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "_folder", folder / "configs")
        (decision,) = summary.summarize(summary.collect("tiny", "tiny", folder / "runs"))["decisions"]
    assert row["claim"] == "layernorm_removal" and row["sentence"] == decision["sentence"]
    assert row["verdict"] == decision["verdict"] == "inconclusive"
    (page,) = record.rglob("*.html")
    assert MADE.question in page.read_text()


def test_pushing_again_makes_records_of_its_own(pushed):
    """Two records under one id would overwrite each other when they are published."""
    folder, found = pushed
    path = found[1].directory / "lr0.01-s0"
    assert push._attempt(path) == 2 and push._attempt(folder / "nowhere") == 1


def test_push_says_what_is_wrong(trained, capsys, monkeypatch):
    folder, _ = trained
    places = [f"--configs={folder / 'configs'}", f"--runs={folder / 'runs'}"]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert main(["push", "tiny", "--profile=tiny", *places]) == 2
    assert "WANDB_MODE=disabled, so there is nothing to push to" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["push", "tiny", "--profile=tiny", *places]) == 2
    assert capsys.readouterr().err.startswith("error: W&B failed (")


def test_a_failing_view_is_a_users_error(trained, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(catalog, "_folder", trained[0] / "configs")
    with pytest.raises(UserError, match="the store is unharmed, push again later"):
        push.push("tiny", "tiny", trained[0] / "runs")


def test_the_verdict_table_has_a_row_for_every_decision(tmp_path, configs):
    made = dataclasses.replace(MADE, contrasts=(WORSE, dataclasses.replace(WORSE, margin=0.5)))
    write_config(configs, made)
    data = summary.summarize(summary.collect("tiny", "tiny", tmp_path))
    rows = [push._row(decision) for decision in data["decisions"]]
    assert len(rows) == 2 and all(len(row) == len(push.COLUMNS) for row in rows)
