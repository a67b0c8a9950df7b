"""Starting from another run's parameters: fine-tuning with another objective, head or corpus."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from transformer.config import difference
from transformer.errors import ConfigError, DataError
from transformer.model.initialization import path_name

if TYPE_CHECKING:
    from transformer.training.run import LoadedRun
    from transformer.training.step import Program

TABLES = ("embedding.", "unembedding.")  # one row or column per token


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What was taken from a run.

    Attributes:
      taken, new: names of the parameters that came from the run, and of those that keep their initial weights.
      left: names of the run's parameters that this model does not have.
      step: the step of the run they come from.
    """

    path: str
    step: int
    taken: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.taken)} parameters from {self.path}, step {self.step}"]
        parts += [f"new: {', '.join(self.new)}"] if self.new else []
        parts += [f"not used: {', '.join(self.left)}"] if self.left else []
        return "starting from " + "; ".join(parts)


def start_from(path: str, program: Program, params: Any, model_state: Any) -> tuple[Any, Any, Transfer]:
    """Parameters and mutable state with everything taken from a run that it has under the same name.

    A head of another size stays new, and so do the rows of special tokens the run did not have.

    Args:
      path: run directory.
      params, model_state: initial ones.

    Raises:
      ConfigError: a parameter has another shape in the run.
      DataError: the run read another vocabulary.
      UserError: the directory is no run, or holds no checkpoint.
    """
    from transformer.training.run import load

    run = load(path)
    _check_vocabulary(path, run, program)
    source = _named(run.state.params)
    taken, new = [], []

    def take(where: tuple[Any, ...], initial: jax.Array) -> jax.Array:
        name = path_name(where)
        found = source.get(name)
        if found is None or (name.startswith("head.") and found.shape != initial.shape):
            new.append(name)
            return initial
        taken.append(name)
        if found.shape == initial.shape:
            return jnp.asarray(found, initial.dtype)
        if name.startswith(TABLES) and all(a <= b for a, b in zip(found.shape, initial.shape, strict=True)):
            return initial.at[tuple(slice(n) for n in found.shape)].set(found.astype(initial.dtype))
        raise ConfigError(_shape_problem(path, name, run, program, found.shape, initial.shape))

    params = jax.tree_util.tree_map_with_path(take, params)
    statistics = _named(run.state.model_state)
    model_state = jax.tree_util.tree_map_with_path(
        lambda where, x: jnp.array(statistics.get(path_name(where), x), x.dtype), model_state
    )
    left = tuple(name for name in source if name not in taken and name not in new)
    return params, model_state, Transfer(path, run.step, tuple(taken), tuple(new), left)


def _named(tree: Any) -> dict[str, jax.Array]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _check_vocabulary(path: str, run: LoadedRun, program: Program) -> None:
    """The data may have special tokens the run did not know, but every id of the run must mean what it meant."""
    if program.vocabulary is None:
        return
    theirs, ours = (
        {k: v for k, v in x.to_dict().items() if k != "added"} for x in (run.vocabulary, program.vocabulary)
    )
    moved = [s for s, i in run.vocabulary.specials.items() if program.vocabulary.specials.get(s, i) != i]
    clash = set(run.vocabulary.specials.values()) & {
        i for s, i in program.vocabulary.specials.items() if s not in run.vocabulary.specials
    }
    if theirs != ours or moved or clash:
        raise DataError(
            f"train.init_from={path} read another vocabulary ({run.vocabulary.name}, {run.vocabulary.size} ids) than "
            f"this data gives ({program.vocabulary.name}, {program.vocabulary.size} ids): its embeddings would mean "
            "other tokens. Use the same data.vocabulary, such as bytes."
        )


def _shape_problem(
    path: str, name: str, run: LoadedRun, program: Program, theirs: tuple[int, ...], ours: tuple[int, ...]
) -> str:
    """A sentence that names the fields of the model that differ."""
    fields = {p: v for p, v in difference(run.config, program.config).items() if p.startswith("model.")}
    listed = ", ".join(f"{p} is {b!r} and was {a!r}" for p, (a, b) in fields.items()) or "the vocabularies differ"
    return f"train.init_from={path}: {name} has the shape {list(theirs)} there and {list(ours)} here; {listed}."
