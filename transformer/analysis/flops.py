"""Floating-point operations, counted in a traced program: any variant, nothing compiled, nothing allocated.

The rule:

  products        a multiply-add is two: 2 * M * N * K for a matrix product, batched or not, and for a convolution
                  2 * outputs * weights per output, padding included. A masked pair of tokens counts, also where
                  it is skipped, so that a model costs the same on every machine
  elementwise     one per element of a floating-point result, for + - * / max min abs sign round; a reduction,
                  a cumulative sum and an addition into a table count one per element that goes in; x^n counts its
                  multiplications
  transcendental  one per element: exp, log, tanh, erf, sin, cos, powers, roots and their kin
  free            comparisons, selections, conversions, data movement, random bits, integers

What a program computes and then drops is not counted, as compilers drop it. Loops are multiplied out, of branches the
dearest counts, and recomputation (`jax.checkpoint`, a kernel's own backward pass) counts again because it runs again. A
loop whose length is known only at run time counts once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from transformer.model import attention_halves


@dataclasses.dataclass(frozen=True)
class Operations:
    """What a program computes.

    Attributes:
      products, elementwise, transcendental: operations, by the rule above.
      opaque: kernels of other libraries that cannot be looked into; what they compute is missing from the numbers.
    """

    products: float = 0.0
    elementwise: float = 0.0
    transcendental: float = 0.0
    opaque: frozenset[str] = frozenset()

    @property
    def total(self) -> float:
        """All of them, a transcendental function as one."""
        return self.products + self.elementwise + self.transcendental

    def __add__(self, other: Operations) -> Operations:
        return Operations(
            self.products + other.products,
            self.elementwise + other.elementwise,
            self.transcendental + other.transcendental,
            self.opaque | other.opaque,
        )

    def __mul__(self, times: float) -> Operations:
        return Operations(self.products * times, self.elementwise * times, self.transcendental * times, self.opaque)

    def __truediv__(self, parts: float) -> Operations:
        return self * (1 / parts)


def count(function: Callable[..., Any], *arguments: Any) -> Operations:
    """Operations of one call; arguments may be `jax.ShapeDtypeStruct`s."""
    return count_program(jax.make_jaxpr(function)(*arguments))


def count_program(program: ClosedJaxpr | Jaxpr, used: Sequence[bool] | None = None) -> Operations:
    """Operations of a traced program.

    Args:
      used: which of its results are needed; by default all of them.
    """
    jaxpr: Any = getattr(program, "jaxpr", program)
    needed = {v for v, u in zip(jaxpr.outvars, used or [True] * len(jaxpr.outvars), strict=True) if u and _is_name(v)}
    total = Operations()
    for equation in reversed(jaxpr.eqns):
        results = [out in needed for out in equation.outvars]
        if any(results) or equation.effects:
            needed.update(filter(_is_name, equation.invars))
            total = total + _equation(equation, results)
    return total


def _is_name(x: Any) -> bool:
    return not isinstance(x, Literal)


# --- One equation ------------------------------------------------------------------------------------------------


def _names(text: str) -> frozenset[str]:
    """Names of primitives, divided by spaces."""
    return frozenset(text.split())


ELEMENTWISE = _names(
    """
    abs add add_any clamp div floor max min mul neg rem round sign sub square ceil is_finite nextafter
    """
)
TRANSCENDENTAL = _names(
    """
    acos acosh asin asinh atan atan2 atanh cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 lgamma log
    log1p logistic pow rsqrt sin sinh sqrt tan tanh
    """
)
PER_INPUT = _names(
    """
    cumlogsumexp cummax cummin cumprod cumsum psum reduce_max reduce_min reduce_prod reduce_sum
    reduce_window_sum
    """
)
FREE = _names(
    """
    all_gather and argmax argmin axis_index bitcast_convert_type broadcast_in_dim concatenate
    convert_element_type copy copy_p device_put dynamic_slice dynamic_update_slice empty eq eq_to expand_dims
    gather ge get gt imag iota le lt ne not opt_barrier optimization_barrier or pad population_count ppermute
    pvary random_bits random_clone random_fold_in random_seed random_split random_unwrap random_wrap real
    reduce_and reduce_or reduce_precision reshape rev scatter select_and_gather_add select_n sharding_constraint
    shift_left shift_right_arithmetic shift_right_logical slice sort split squeeze stack stop_gradient swap
    threefry2x32 top_k transpose unstack xor masked_load masked_swap program_id num_programs multiple_of
    ref_to_tile debug_callback
    """
)


def _equation(equation: Any, used: list[bool]) -> Operations:
    """Operations of one equation of which the results `used` are needed."""
    name, params = equation.primitive.name, equation.params
    if name in RULES:
        return RULES[name](equation)
    inside = list(_programs(params))
    if not inside and not any(_is_floating(v.aval) for v in equation.outvars):
        return Operations()
    if name in ELEMENTWISE:
        return Operations(elementwise=_size(equation.outvars[0]))
    if name in TRANSCENDENTAL:
        return Operations(transcendental=_size(equation.outvars[0]))
    if name in PER_INPUT:
        return Operations(elementwise=sum(_size(v) for v in equation.invars))
    if name in FREE:
        return Operations()
    if not inside:
        return Operations(opaque=frozenset({name}))
    same = len(inside) == 1 and len(inside[0].outvars) == len(used)  # a call: its results are those of the body
    counted = sum((count_program(body, used if same else None) for body in inside), Operations())
    return counted / SHARE_OF_SCORES.get(params.get("name"), 1)


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _is_floating(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def _programs(params: dict[str, Any]) -> Iterator[Any]:
    """The programs an equation holds."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def _dot(equation: Any) -> Operations:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return Operations(products=2 * _size(equation.outvars[0]) * math.prod(shape[i] for i in contracted))


def _convolution(equation: Any) -> Operations:
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return Operations(products=2 * _size(equation.outvars[0]) * math.prod(kernel) / max(1, outputs))


def _integer_power(equation: Any) -> Operations:
    exponent = abs(equation.params["y"])
    multiplications = max(0, exponent.bit_length() + exponent.bit_count() - 2)
    return Operations(elementwise=_size(equation.outvars[0]) * (multiplications + (equation.params["y"] < 0)))


def _scan(equation: Any) -> Operations:
    return count_program(equation.params["jaxpr"]) * equation.params["length"]


def _while(equation: Any) -> Operations:
    return count_program(equation.params["body_jaxpr"]) + count_program(equation.params["cond_jaxpr"])


def _branches(equation: Any) -> Operations:
    return max((count_program(branch) for branch in equation.params["branches"]), key=lambda counted: counted.total)


def _shards(equation: Any) -> Operations:
    return count_program(equation.params["jaxpr"]) * math.prod(dict(equation.params["mesh"].shape).values())


def _grid(equation: Any) -> Operations:
    return count_program(equation.params["jaxpr"]) * math.prod(equation.params["grid_mapping"].grid)


def _scatter_add(equation: Any) -> Operations:
    return Operations(elementwise=_size(equation.invars[2]))


def _attention(products: int) -> Callable[[Any], Operations]:
    """Of cuDNN's attention, as if written out: so many products of the size of the scores. It computes the scores again
    in the backward pass, which a count that is the same on every machine leaves aside."""

    def operations(equation: Any) -> Operations:
        query_BTHK, key_BSGK = equation.invars[:2]
        return Operations(products=2 * products * _size(query_BTHK) * key_BSGK.aval.shape[1])

    return operations


# Calls that make a part of the scores only, by the names they are compiled under.
SHARE_OF_SCORES = {attention_halves.NAME: attention_halves.SHARE_OF_SCORES}
RULES: dict[str, Callable[[Any], Operations]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "integer_pow": _integer_power,
    "scan": _scan,
    "while": _while,
    "cond": _branches,
    "shard_map": _shards,
    "pallas_call": _grid,
    "dot_product_attention_fwd_wrapper": _attention(2),
    "dot_product_attention_bwd_wrapper": _attention(4),
    "scatter-add": _scatter_add,
    "scatter-mul": _scatter_add,
}
