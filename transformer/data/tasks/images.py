"""Pictures of digits, read pixel by pixel."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer.data.tasks.base import SPLITS, TASKS, Layout, Question, QuestionAnswer
from transformer.schema import Data, field

# Ten digits, five pixels wide and seven high, drawn for this file.
GLYPHS = np.array(
    [
        [[pixel == "#" for pixel in line] for line in glyph.split()]
        for glyph in (
            ".###. #...# #...# #...# #...# #...# .###.",
            "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
            ".###. #...# ....# ...#. ..#.. .#... #####",
            "####. ....# ....# .###. ....# ....# ####.",
            "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
            "##### #.... ####. ....# ....# #...# .###.",
            "..##. .#... #.... ####. #...# #...# .###.",
            "##### ....# ...#. ..#.. ..#.. ..#.. ..#..",
            ".###. #...# #...# .###. #...# #...# .###.",
            ".###. #...# #...# .#### ....# ...#. .##..",
        )
    ]
)
HEIGHT = GLYPHS.shape[1]
SHADES = 4  # the two lower ones are paper, the two upper ones ink


@dataclasses.dataclass(frozen=True)
class Canvas(Layout):
    """The size of the picture and how far digits move."""

    task_canvas: int = field(8, "pixels per side")
    task_max_shift: int = field(1, "farthest a digit stands from the middle; in the split `shifted` it stands anywhere")


@TASKS.register("image", parameters=Canvas, paper="LeCun et al. 1998; Dosovitskiy et al. 2020 for pixels as a sequence")
class Image(QuestionAnswer):
    """Which digit a picture shows: `task_canvas` squared pixels in uneven shades, row by row."""

    layouts = ("sequence", "pair", "label")
    splits = (*SPLITS, "shifted")
    answers = range(SHADES, SHADES + len(GLYPHS))

    def __init__(self, section: Data):
        super().__init__(section)
        self.room = np.array(section.task_canvas) - np.array(GLYPHS.shape[1:])  # free pixels down and across

    @classmethod
    def problem(cls, section: Any) -> str | None:
        if section.task_canvas < HEIGHT:
            return f"data.task_canvas={section.task_canvas} must be at least {HEIGHT}, the height of a digit."
        if section.task_max_shift < 0:
            return f"data.task_max_shift={section.task_max_shift} must not be negative."
        return super().problem(section)

    def symbols(self) -> list[str]:
        return [".", ":", "o", "@", *(str(digit) for digit in range(len(GLYPHS)))]

    def question(self, key: jax.Array, split: str) -> Question:
        digit_key, place_key, shade_key = jax.random.split(key, 3)
        digit = jax.random.randint(digit_key, (), 0, len(GLYPHS))
        reach = max(self.room) if split == "shifted" else self.section.task_max_shift
        low, high = np.maximum(self.room // 2 - reach, 0), np.minimum(self.room // 2 + reach, self.room)
        corner = jax.random.randint(place_key, (2,), jnp.asarray(low), jnp.asarray(high) + 1)
        side = self.section.task_canvas
        glyph = jnp.asarray(GLYPHS)[digit].astype(jnp.int32)
        ink = jax.lax.dynamic_update_slice(jnp.zeros((side, side), jnp.int32), glyph, (corner[0], corner[1]))
        shades = 2 * ink + jax.random.randint(shade_key, (side, side), 0, 2)
        return Question(shades.reshape(-1), SHADES + digit[None])

    def solve(self, question: list[int], start: int) -> list[int]:
        side = self.section.task_canvas
        ink = np.array(question).reshape(side, side) >= SHADES // 2
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        (digit,) = (d for d, glyph in enumerate(GLYPHS) if np.array_equal(_trimmed(glyph), cut))
        return [SHADES + digit]


def _trimmed(glyph: np.ndarray) -> np.ndarray:
    """A glyph without its empty margins."""
    return glyph[np.ix_(glyph.any(axis=1), glyph.any(axis=0))]
