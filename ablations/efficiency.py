"""Quality at equal cost: the compute a change is worth, and what is left of a gain at equal time or FLOPs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ablations.statistics import Values


@dataclasses.dataclass(frozen=True)
class ComputeMultiplier:
    """Baseline tokens that reach the arm's final loss, as a share of the budget.

    Attributes:
      value: below 1 when the baseline gets there early (the arm costs compute); None when no point of the
        curve can say.
      text: the value, or which side it lies on.
    """

    value: float | None
    text: str


def equal_loss_multiplier(tokens: Values, losses: Values, final_loss: float) -> ComputeMultiplier:
    """Where a baseline curve first reaches an arm's final loss, divided by the curve's last token count.

    The running minimum of the curve is interpolated linearly in log tokens. A curve measured under a decaying
    learning rate has not been annealed on the way, so values below 1 are upper bounds.

    Args:
      tokens, losses: the baseline's curve `[points]`, tokens increasing and above zero.
      final_loss: the arm's loss at the same budget.

    Raises:
      ValueError: a curve of fewer than two points, or of tokens that do not increase.
    """
    x, y = np.asarray(tokens, dtype=np.float64), np.minimum.accumulate(np.asarray(losses, dtype=np.float64))
    if len(x) < 2 or x[0] <= 0 or np.any(np.diff(x) <= 0):
        raise ValueError("A baseline curve needs at least two points with increasing token counts above zero.")
    if final_loss < y[-1]:
        return ComputeMultiplier(None, f"beyond the budget (the baseline ends at {y[-1]:.4f})")
    if final_loss >= y[0]:
        return ComputeMultiplier(None, f"below {x[0] / x[-1]:.2g} (before the baseline's first measurement)")
    after = int(np.argmax(y <= final_loss))
    share = (y[after - 1] - final_loss) / (y[after - 1] - y[after])
    reached = math.exp(math.log(x[after - 1]) + share * math.log(x[after] / x[after - 1]))
    return ComputeMultiplier(reached / x[-1], f"{reached / x[-1]:.2f}x")


@dataclasses.dataclass(frozen=True)
class CostCurve:
    """An arm's mean learning curve with what each token cost.

    Attributes:
      tokens, losses: `[points]`.
      per_token: cost name -> cost of one token, such as {"flops": 1.2e6, "seconds": 4e-6}.
      parameters: number of trained parameters.
    """

    tokens: tuple[float, ...]
    losses: tuple[float, ...]
    per_token: Mapping[str, float]
    parameters: int | None = None


@dataclasses.dataclass(frozen=True)
class IsoRow:
    """One way of calling two arms equal.

    Attributes:
      equal: what is held equal: tokens, flops, seconds, ...
      ratio: cost of test over cost of base for one token.
      difference: loss of test minus loss of base at that equal cost; None when a curve starts too late.
    """

    equal: str
    ratio: float
    difference: float | None


def _loss_at(curve: CostCurve, tokens: float) -> float | None:
    if tokens < curve.tokens[0] * (1 - 1e-9):
        return None
    return float(np.interp(math.log(tokens), np.log(curve.tokens), curve.losses))


def iso_summary(test: CostCurve, base: CostCurve) -> tuple[IsoRow, ...]:
    """The loss difference at equal tokens and at every equal cost both arms report.

    The arm that is cheaper per token stands at its end; the dearer one is read from its curve at the same
    total cost, where its learning rate has not yet decayed: a gain that survives this reading is a safe one.
    """
    rows = []
    shared = [name for name in test.per_token if name in base.per_token]
    for name in ["tokens", *shared]:
        cost_test = 1.0 if name == "tokens" else test.per_token[name]
        cost_base = 1.0 if name == "tokens" else base.per_token[name]
        budget = min(test.tokens[-1] * cost_test, base.tokens[-1] * cost_base)
        ends = (_loss_at(test, budget / cost_test), _loss_at(base, budget / cost_base))
        difference = None if ends[0] is None or ends[1] is None else ends[0] - ends[1]
        rows.append(IsoRow(name, cost_test / cost_base, difference))
    return tuple(rows)
