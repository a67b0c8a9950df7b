"""Finding ablations: `configs/ablation_NAME.py` holds the `Ablation` called NAME."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ablations.schema import Ablation
from transformer.errors import ConfigError, UserError, did_you_mean

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RUNS = Path("runs") / "arms"  # where arms are trained
PREFIX = "ablation_"
_added: dict[str, tuple[Ablation, str]] = {}  # questions typed on the command line, and what was typed
_folder = CONFIGS
_execution = ""


def execute(execution: str) -> None:
    """Chooses how members are trained, for all ablations that do not say so themselves; part of an arm's identity."""
    global _execution
    _execution = execution


@contextlib.contextmanager
def executed(execution: str) -> Iterator[None]:
    """`execute`, for as long as the context lasts."""
    before = _execution
    execute(execution)
    try:
        yield
    finally:
        execute(before)


def look_in(folder: Path) -> None:
    """Chooses the folder of configs for this process.

    Raises:
      UserError: it does not exist.
    """
    global _folder
    if not folder.is_dir():
        raise UserError(f"--configs={folder} is not a folder.")
    _folder = folder


def names(folder: Path | None = None) -> list[str]:
    """All ablations, by file stem without the prefix; by default in the folder that was chosen."""
    return sorted(path.stem.removeprefix(PREFIX) for path in (folder or _folder).glob(f"{PREFIX}*.py"))


def add(name: str, ablation: Ablation, command: str) -> None:
    """Makes an ablation that has no file known to this process; `command` asks it again."""
    _added[name] = ablation, command


def run_command(name: str) -> str:
    """What follows `python -m ablations` to run an ablation."""
    return _added[name][1] if name in _added else f"run {name}"


def load(name: str, folder: Path | None = None) -> Ablation:
    """The ablation called `name`; by default from the folder that was chosen.

    Raises:
      UserError: no such ablation, or its file cannot be run or does not define one.
    """
    if name in _added:
        return _executed(_added[name][0])
    path = (folder or _folder) / f"{PREFIX}{name}.py"
    if not path.is_file():
        known = names(folder)
        listed = ", ".join(known) or "(none)"
        raise UserError(f"There is no ablation {name!r}; there are: {listed}.{did_you_mean(name, known)}")
    module = load_module(path)
    if not isinstance(getattr(module, "ABLATION", None), Ablation):
        raise ConfigError(f"{path.name} does not define ABLATION = Ablation(...).")
    return _executed(module.ABLATION)


def _executed(ablation: Ablation) -> Ablation:
    if not _execution:
        return ablation
    return dataclasses.replace(ablation, base={"execution": _execution, **ablation.base})


def load_module(path: Path) -> ModuleType:
    """Runs a config file. This is the one place where config files become modules.

    Raises:
      ConfigError: it cannot be run.
    """
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise ConfigError(f"{path.name}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{path.name} cannot be loaded: {type(error).__name__}: {error}") from error
    return module
