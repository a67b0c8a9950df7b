"""Finding ablations: `configs/ablation_NAME.py` holds the `Ablation` called NAME."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from ablations.schema import Ablation
from transformer.errors import ConfigError, UserError, did_you_mean

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PREFIX = "ablation_"
_added: dict[str, Ablation] = {}  # questions typed on the command line


def names(folder: Path = CONFIGS) -> list[str]:
    """All ablations, by file stem without the prefix."""
    return sorted(path.stem.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*.py"))


def add(name: str, ablation: Ablation) -> None:
    """Makes an ablation that has no file known to this process."""
    _added[name] = ablation


def load(name: str, folder: Path = CONFIGS) -> Ablation:
    """The ablation called `name`.

    Raises:
      UserError: no such ablation, or its file does not define one.
    """
    if name in _added:
        return _added[name]
    path = folder / f"{PREFIX}{name}.py"
    if not path.is_file():
        known = names(folder)
        raise UserError(f"There is no ablation {name!r}; there are: {', '.join(known)}.{did_you_mean(name, known)}")
    module = load_module(path)
    if not isinstance(getattr(module, "ABLATION", None), Ablation):
        raise ConfigError(f"{path.name} does not define ABLATION = Ablation(...).")
    return module.ABLATION


def load_module(path: Path) -> ModuleType:
    """Runs a config file. This is the one place where config files become modules."""
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
