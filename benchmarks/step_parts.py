"""Where the time of a training step goes on the CPU: each of its parts alone, ours beside PyTorch's.

    python -m benchmarks.step_parts [--sizes=small,medium,large] [--rounds=15] [--json=FILE]

The shapes are those of `train_step`. A part is forward and backward of one operation at the size the step has it, as
one compiled program on our side and eagerly on PyTorch's, times the number of times a step runs it:

dense        products of the four projections, the feed-forward network and the logits, with both of their gradients
attention    from projected queries, keys and values [B, T, D] to the heads' outputs side by side, causal
gelu         exact GELU on [B T, 4 D]
norm         LayerNorm with a gain on [B T, D]
loss         mean cross-entropy of [B T, V]
optimizer    clipping and AdamW on all parameters

Parts run from and to memory, where a whole step fuses neighbours, so they do not add up to it; the row `step` is the
whole, timed in the same rounds. `behind` says what part of PyTorch's whole step a part costs us more: it names what
keeps us from 1.0. Sides take turns in random order, each in a process of its own; medians over rounds.
"""

from __future__ import annotations

import functools
import random
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import reporting
from benchmarks.reporting import BenchmarkError, Table
from benchmarks.sides import ADAMW, CLIP, OURS, TORCH, VOCAB_SIZE, Ours, Size, Torch, processes, timed
from benchmarks.train_step import SIZES, add_sizes, checked_sizes

QUESTION = "Where does the time of a training step go?"
STEP = "step"
PARTS = ("dense", "attention", "gelu", "norm", "loss", "optimizer")


def draw(*shape: int) -> np.ndarray:
    """Standard normal numbers, the same on both sides."""
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def matrices(size: Size, fused: bool) -> list[tuple[int, int, int]]:
    """(inputs, outputs, times a step) of every dense product; PyTorch's model projects to heads in one."""
    d, layers = size.d_model, size.num_layers
    heads = [(d, 3 * d, layers), (d, d, layers)] if fused else [(d, d, 4 * layers)]
    return [*heads, (d, 4 * d, layers), (4 * d, d, layers), (d, VOCAB_SIZE, 1)]


def shapes(size: Size, fused: bool) -> dict[str, list[tuple[int, tuple[tuple[int, ...], ...]]]]:
    """part -> for each program that makes it up, times a step and the shapes of its operands, the last one that of
    the gradient that comes back."""
    rows, d = size.batch_size * size.sequence_length, size.d_model
    heads = (size.batch_size, size.sequence_length, d)
    projected = ((size.batch_size, size.sequence_length, 3 * d),) if fused else (heads, heads, heads)
    return {
        "dense": [(times, ((rows, i), (i, o), (rows, o))) for i, o, times in matrices(size, fused)],
        "attention": [(size.num_layers, (*projected, heads))],
        "gelu": [(size.num_layers, ((rows, 4 * d), (rows, 4 * d)))],
        "norm": [(2 * size.num_layers + 1, ((rows, d), (d,), (rows, d)))],
        "loss": [(1, ((rows, VOCAB_SIZE), ()))],
    }


class Parts:
    """What both sides do with their parts. A side makes them, `_program` and `_optimizer`: calls that wait until what
    they compute is there."""

    def make(self, size: Size, fused: bool) -> None:
        """Makes all parts, ready to be timed."""
        self.parts: dict[str, list[tuple[int, Callable[[], Any]]]] = {}
        for name, programs in shapes(size, fused).items():
            self.parts[name] = [(times, self._program(name, operands)) for times, operands in programs]
        self.parts["optimizer"] = [(1, self._optimizer())]

    def part(self, name: str, repeats: int) -> float:
        """Seconds of a part in one step."""
        if name == STEP:
            return timed(self.steps, repeats)[0] / repeats
        seconds = 0.0
        for times, run in self.parts[name]:
            run()
            seconds += times * statistics.median(timed(run)[0] for _ in range(repeats))
        return seconds

    def steps(self, count: int) -> Any:
        """Whole steps."""
        raise NotImplementedError

    def _program(self, name: str, operands: tuple[tuple[int, ...], ...]) -> Callable[[], Any]:
        raise NotImplementedError

    def _optimizer(self) -> Callable[[], Any]:
        raise NotImplementedError


class OurParts(Parts, Ours):
    """Our step, and its parts with the library's own functions."""

    def __init__(self, size: Size):
        super().__init__(size)
        self.make(size, fused=False)

    def steps(self, count: int) -> Any:
        return self.train(count, count)

    def _program(self, name: str, operands: tuple[tuple[int, ...], ...]) -> Callable[[], Any]:
        import jax
        import jax.numpy as jnp

        function = getattr(self, f"_{name}")
        *inputs, gradient = [jnp.asarray(draw(*shape)) for shape in operands]

        @jax.jit
        def both(inputs: Any, gradient: Any) -> Any:
            output, backward = jax.vjp(function, *inputs)
            return output, backward(gradient)

        return lambda: jax.block_until_ready(both(inputs, gradient))

    def _dense(self, x_ND: Any, kernel: Any) -> Any:
        from transformer.model.linear import product

        return product(x_ND, kernel)

    def _attention(self, *projected: Any) -> Any:
        import jax.numpy as jnp

        from transformer.model.attention import split_heads
        from transformer.model.attention_backends import AttentionCall, reference_attention
        from transformer.model.attention_weights import Softmax
        from transformer.model.context import Context
        from transformer.model.masks import Mask
        from transformer.model.positions import NoPosition

        settings = self.program.config.model.attention
        q, k, v = (split_heads(x_BTE, settings.num_heads) for x_BTE in projected)
        B, T, E = projected[0].shape
        positions_BT = jnp.arange(T)[None]
        context = Context(positions_BT=positions_BT, mask=Mask(in_order=True), position=NoPosition())
        o_BHTU = reference_attention(
            AttentionCall(
                query_BHTK=q * q.shape[-1] ** -0.5,
                key_BGSK=k,
                value_BGSU=v,
                query_positions_BT=positions_BT,
                key_positions_BS=positions_BT,
                num_heads=settings.num_heads,
                mask=context.mask,
                weights=Softmax(settings),
                soft_cap=0.0,
                dropout_rate=0.0,
                context=context,
            )
        )
        return o_BHTU.transpose(0, 2, 1, 3).reshape(B, T, E)

    def _gelu(self, x_NF: Any) -> Any:
        from transformer.model.feedforward import gelu

        return gelu(x_NF)

    def _norm(self, x_ND: Any, gain_D: Any) -> Any:
        from flax import nnx

        from transformer.model.normalization import make_norm

        structure, _ = nnx.split(make_norm(self.program.config.model))
        return nnx.merge(structure, {"gain": gain_D})(x_ND)

    def _loss(self, logits_NV: Any) -> Any:
        from transformer.training.objectives import cross_entropy

        targets_N = np.arange(logits_NV.shape[0], dtype=np.int32) % VOCAB_SIZE
        return cross_entropy(logits_NV, targets_N, 0.0)[0].mean()

    def _optimizer(self) -> Callable[[], Any]:
        import jax
        import jax.numpy as jnp

        optimizer, hyper, grads = self.program.optimizer, self.hyper, jax.tree.map(jnp.ones_like, self.state.params)
        step = jax.jit(lambda p, s, g: optimizer.update(g, s, p, jnp.int32(1), hyper)[:2], donate_argnums=(0, 1))
        held = [jax.tree.map(jnp.copy, (self.state.params, self.state.optimizer))]

        def run() -> None:
            held[0] = jax.block_until_ready(step(*held[0], grads))

        return run


class TorchParts(Parts, Torch):
    """PyTorch's step and its parts, eagerly."""

    def __init__(self, size: Size):
        super().__init__(size, compiled=False)
        self.make(size, fused=True)

    def steps(self, count: int) -> Any:
        return self.train(count)

    def _program(self, name: str, operands: tuple[tuple[int, ...], ...]) -> Callable[[], Any]:
        import torch

        function = getattr(self, f"_{name}")
        *inputs, gradient = [torch.from_numpy(np.asarray(draw(*shape))) for shape in operands]
        if name == "dense":  # PyTorch stores a weight as [outputs, inputs]
            inputs[1] = inputs[1].T.contiguous()
        inputs = [x.requires_grad_() for x in inputs]
        return lambda: torch.autograd.grad(function(*inputs), inputs, gradient)

    def _dense(self, x_ND: Any, weight: Any) -> Any:
        from torch.nn import functional as F

        return F.linear(x_ND, weight)

    def _attention(self, x_BTE: Any) -> Any:
        from torch.nn import functional as F

        B, T, E = x_BTE.shape
        q, k, v = (part.view(B, T, self.size.num_heads, -1).transpose(1, 2) for part in x_BTE.split(E // 3, dim=2))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, E // 3)

    def _gelu(self, x_NF: Any) -> Any:
        from torch.nn import functional as F

        return F.gelu(x_NF)

    def _norm(self, x_ND: Any, gain_D: Any) -> Any:
        from torch.nn import functional as F

        return F.layer_norm(x_ND, gain_D.shape, gain_D)

    def _loss(self, logits_NV: Any) -> Any:
        import torch
        from torch.nn import functional as F

        return F.cross_entropy(logits_NV, torch.arange(len(logits_NV)) % VOCAB_SIZE)

    def _optimizer(self) -> Callable[[], Any]:
        import torch

        from benchmarks.torch_gpt import GPT, Shape, make_optimizer

        shape = self.size
        model = GPT(Shape(VOCAB_SIZE, shape.num_layers, shape.d_model, shape.num_heads, shape.sequence_length))
        optimizer = make_optimizer(model, **ADAMW)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)

        def run() -> None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()

        return run


def measure(size: Size, rounds: int, dice: random.Random) -> dict[str, dict[str, list[float]]]:
    """part -> side -> seconds of each round."""
    makers = {OURS: functools.partial(OurParts, size), TORCH: functools.partial(TorchParts, size)}
    found: dict[str, dict[str, list[float]]] = {part: {name: [] for name in makers} for part in (*PARTS, STEP)}
    with processes(makers) as sides:
        for side in sides.values():
            side.ask("train", 1)
        for _ in range(rounds):
            for part, name in dice.sample([(part, name) for part in found for name in makers], 2 * len(found)):
                found[part][name].append(sides[name].ask("part", part, size.timed_steps)[1])
    return found


def table(name: str, found: dict[str, dict[str, list[float]]]) -> Table:
    """The parts of one size."""
    seconds = {part: {side: statistics.median(row) for side, row in sides.items()} for part, sides in found.items()}
    whole = seconds[STEP]
    rows = [
        (
            part,
            f"{1e3 * row[OURS]:.1f}",
            f"{1e3 * row[TORCH]:.1f}",
            f"{row[TORCH] / row[OURS]:.2f}",
            f"{row[OURS] / whole[OURS]:.0%}",
            f"{(row[OURS] - row[TORCH]) / whole[TORCH]:+.0%}",
        )
        for part, row in seconds.items()
    ]
    return Table(name, ("part", "ours ms", "PyTorch ms", "speed-up", "of our step", "behind"), tuple(rows))


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and stores; returns the exit code."""
    parser = reporting.parser(__doc__ or "")
    add_sizes(parser)
    options = parser.parse_args(arguments)
    sizes = checked_sizes(parser, options)
    dice = random.Random(0)
    try:
        found = {name: measure(SIZES[name], options.rounds, dice) for name in sizes}
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    reporting.finish("step_parts", QUESTION, [table(name, row) for name, row in found.items()], found, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
