"""Numbers as a person would write them: few digits, a true minus sign, a unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

Interval = Sequence[float] | None
NOTHING = "–"


def decimals_for(width: float) -> int:
    """Decimals that show an uncertainty of `width` with two significant digits; at most six."""
    if width <= 0 or not math.isfinite(width):
        return 4
    return min(6, max(0, 1 - math.floor(math.log10(width))))


def fixed(number: float, decimals: int, signed: bool = False) -> str:
    """`-0.0123` as `−0.012`; a value that rounds to zero has no sign."""
    text = f"{abs(number):.{decimals}f}"
    if float(text) == 0:
        return text
    return ("−" if number < 0 else "+" if signed else "") + text


def significant(number: float | None, digits: int = 3) -> str:
    """Significant digits without an exponent unless the number is very large or very small."""
    if number is None:
        return NOTHING
    if number == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(number)))
    if not -4 <= magnitude < 7:
        return f"{number:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e+").replace("-", "−")
    return fixed(number, max(0, digits - 1 - magnitude))


def rate(number: float | None) -> str:
    """A learning rate: `1e−3`, `3e−4`, `1.5e−3`, with a minus at which no line breaks."""
    if number is None:
        return NOTHING
    if number == 0:
        return "0"
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")


def estimate(middle: float | None, interval: Interval, signed: bool) -> tuple[str, str]:
    """The estimate and its interval, rounded alike: (`+0.031`, `+0.012 to +0.050`); empty where unknown."""
    if middle is None:
        return NOTHING, ""
    if interval is None:
        text = significant(middle)
        return ("+" + text if signed and middle > 0 else text), ""
    low, high = interval
    places = decimals_for((high - low) / 2)
    return fixed(middle, places, signed), f"{fixed(low, places, signed)} to {fixed(high, places, signed)}"


def p_value(p: float | None) -> str:
    if p is None:
        return NOTHING
    if p < 0.001:
        return "< 0.001"
    return f"{p:.2g}" if p < 0.995 else "1"


def count(number: float | None) -> str:
    """A count with a suffix: `812k`, `1.24M`, `3.1G`."""
    if number is None:
        return NOTHING
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size * 0.9995:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def exact(number: float | None) -> str:
    """Every digit, grouped: `812,345`."""
    return NOTHING if number is None else f"{round(number):,}"


def ratio(number: float | None, base: float | None) -> str:
    """`1.04` times the baseline; empty where either is unknown."""
    return "" if number is None or not base else f"{number / base:.2f}×"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def plural(number: int, word: str, many: str = "") -> str:
    return f"{number:,} {word if number == 1 else many or word + 's'}"


def listed(items: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    items = list(items)
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"
