"""Claims about counts in models: parameters, operations, bytes. Each has a sabotage that it must notice."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.claims.layers import config, context, model, stream, through_blocks
from transformer import Config, build, replace
from transformer.analysis import accounting, flops, formulas, memory
from transformer.analysis.presets import PRESETS
from transformer.inference.generate import generate
from transformer.model import declare, split
from transformer.model.attention_backends import BACKENDS
from transformer.model.flash_attention import BLOCK
from transformer.model.initialization import abstract


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def block(width: int, **overrides: Any):
    """One block as a function of its parameters and its stream, and the shapes of the parameters: nothing is drawn."""
    made = config(d_model=width, num_layers=1, **overrides)
    structure, params, state = split(declare(made, 11))

    def through(params, x):
        whole = nnx.merge(structure, params, nnx.to_pure_dict(state))
        return through_blocks(whole, x, context(length=x.shape[1]))

    return through, abstract(params, made)


def operations(width: int, length: int, batch: int = 1, **overrides: Any) -> flops.Operations:
    through, params = block(width, **overrides)
    return flops.count(through, params, shape(batch, length, width))


def compiled_flops(width: int, length: int, **overrides: Any) -> float:
    """The compiler's own count of its own program."""
    through, params = block(width, **overrides)
    return jax.jit(through).lower(params, shape(1, length, width)).compile().cost_analysis()["flops"]


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope in log-log coordinates between the two largest sizes."""
    return float(np.log(values[-1] / values[-2]) / np.log(sizes[-1] / sizes[-2]))


@functools.cache
def components(name: str) -> dict[str, int]:
    return accounting.declared_components(PRESETS[name].config())


# --- Operations --------------------------------------------------------------------------------------------------


def check_block_formula(**overrides: Any) -> None:
    for width, length in ((128, 64), (128, 256), (256, 128)):
        expected = sum(formulas.block_flops(length, width).values())
        assert operations(width, length, **overrides).products == expected
        assert compiled_flops(width, length, **overrides) == pytest.approx(expected, rel=0.05)


class TestAttentionFlopsFormula:
    claim = "attention_flops_formula"

    def test_holds(self):
        check_block_formula()

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_block_formula(ffn__kind="swiglu")


def check_exponents(**overrides: Any) -> None:
    sizes = [1024, 8192, 65536]  # far out, where the largest term rules; nothing is allocated
    scores = [operations(64, n, layers="attention", **overrides).products for n in sizes]
    linear = [operations(d, 8, layers="attention", **overrides).products for d in sizes]
    assert exponent(sizes, scores) == pytest.approx(2, abs=0.02), "attention is quadratic in the length"
    assert exponent(sizes, linear) == pytest.approx(2, abs=0.02), "its projections are quadratic in the width"
    mixing = [operations(64 * k, 8192, layers="attention").products - 8.0 * 8192 * (64 * k) ** 2 for k in (1, 2, 4)]
    assert exponent([1, 2, 4], mixing) == pytest.approx(1, abs=0.02), "scores and mixing are linear in the width"
    for sizes_, wanted in (([(64, n) for n in sizes], 1), ([(d, 8) for d in sizes], 2)):
        counts = [operations(d, n, layers="ffn").products for d, n in sizes_]
        assert exponent(sizes, counts) == pytest.approx(wanted, abs=0.02)


class TestPerLayerComplexity:
    claim = "per_layer_complexity_table"

    @pytest.mark.parametrize("heads", [1, 4])
    def test_holds(self, heads):
        check_exponents(attention__num_heads=heads)
        both, attention, ffn = (operations(64, 32, layers=kind).products for kind in ("both", "attention", "ffn"))
        assert both == attention + ffn

    def test_sabotage(self):
        with pytest.raises(AssertionError, match="quadratic in the width"):
            check_exponents(attention__num_heads=1, attention__head_dim=8)


def check_constant_in_heads(width: int = 64, **fixed: int) -> None:
    heads = (1, 2, 4, 8, 16)
    counts = [operations(width, 32, layers="attention", attention__num_heads=h, **fixed) for h in heads]
    assert len({c.products for c in counts}) == 1
    softmax = [c.transcendental for c in counts]
    assert softmax[-1] - softmax[-2] == 8 * (softmax[1] - softmax[0]) > 0, "softmax work grows with every head"


class TestHeadsDoNotChangeComplexity:
    claim = "heads_do_not_change_complexity"

    def test_holds(self):
        check_constant_in_heads()

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_constant_in_heads(attention__head_dim=8)


def parts(width: int, length: int, **overrides: Any) -> tuple[float, float, float]:
    """(attention with projections, scores and mixing alone, feed-forward), products of one block."""
    attention = operations(width, length, layers="attention", **overrides).products
    ffn = operations(width, length, layers="ffn", **overrides).products
    return attention, attention - 8.0 * length * width**2, ffn


def check_crossover_at_width(**overrides: Any) -> None:
    """Attention costs as much as the feed-forward network at n = d, less below and more above."""
    for ratio in (0.25, 0.5, 1, 2, 4, 16):
        attention, _, ffn = parts(64, int(64 * ratio), **overrides)
        assert np.sign(attention - ffn) == np.sign(ratio - 1)


class TestCrossoverAtTheWidth:
    claim = "attention_ffn_crossover_formula"

    def test_refuted(self):
        """At n = d attention costs 75% of the feed-forward network, scores and mixing alone 25%: they cross at 2d and
        at 4d."""
        with pytest.raises(AssertionError):
            check_crossover_at_width()
        attention, mixing, ffn = parts(64, 64)
        assert (attention / ffn, mixing / ffn) == (0.75, 0.25)
        assert parts(64, 128)[0] == parts(64, 128)[2] and parts(64, 256)[1] == parts(64, 256)[2]

    def test_sabotage(self):
        check_crossover_at_width(ffn__ratio=3.0)  # with a narrower network the claim is true, and the check can tell


@functools.cache
def small_gpt(**overrides: Any) -> flops.Operations:
    """Forward operations of GPT-2 (124M) on one window."""
    made = PRESETS["gpt2_124m"].config()
    return accounting.forward_operations(accounting.make_program(replace(made, {"train.batch_size": 1, **overrides})))


class TestEmbeddingLookup:
    claim = "embedding_flops"

    def test_holds(self):
        """The look-up itself: no product at all."""
        table, tokens = shape(50257, 768), jax.ShapeDtypeStruct((1, 1024), jnp.int32)
        assert flops.count(lambda table, tokens: table[tokens], table, tokens).total == 0

    def test_sabotage(self):
        table, tokens = shape(50257, 768), jax.ShapeDtypeStruct((1, 1024), jnp.int32)
        one_hot = flops.count(lambda table, tokens: jax.nn.one_hot(tokens, 50257) @ table, table, tokens)
        assert one_hot.products == 2 * 1024 * 50257 * 768


class TestEmbeddingLogits:
    claim = "embedding_flops"

    def test_refuted(self):
        """The same table as output layer takes 27% of the forward products of GPT-2 (124M) on 1,024 tokens."""
        assert 2 * 50257 * 768 / small_gpt().products == pytest.approx(0.27, abs=0.005)

    def test_sabotage(self):
        wide = formulas.block_flops(1024, 12288)
        assert 2 * 50257 * 12288 * 1024 / (96 * sum(wide.values())) < 0.05  # of a GPT-3 it is a small part


def check_saves(fewer: flops.Operations, full: flops.Operations) -> None:
    assert fewer.products < 0.5 * full.products


class TestMaskingSaves:
    claim = "sparse_by_masking_saves"
    WINDOW, LENGTH, WIDTH = 32, 256, 64

    def test_refuted(self):
        """A window of 32 on 256 tokens masks seven eighths of the scores, and every one of them is still computed."""
        full = operations(self.WIDTH, self.LENGTH, layers="attention")
        masked = operations(self.WIDTH, self.LENGTH, layers="attention", attention__window=self.WINDOW)
        assert masked.products == full.products
        costs = [
            compiled_flops(self.WIDTH, self.LENGTH, layers="attention", attention__window=window)
            for window in (0, self.WINDOW)
        ]
        assert costs[1] == pytest.approx(costs[0], rel=0.02)
        with pytest.raises(AssertionError):
            check_saves(masked, full)

    def test_sabotage(self):
        """Blocks that are never built do save, and the check can tell."""
        full = operations(self.WIDTH, self.LENGTH, layers="attention")
        check_saves(operations(self.WIDTH, self.WINDOW, self.LENGTH // self.WINDOW, layers="attention"), full)


class TestRmsnormReductions:
    claim = "rmsnorm_one_fewer_reduction"

    @staticmethod
    def reductions(kind: str) -> int:
        """Reductions in the optimised program of one norm on the CPU."""
        norm = model(norm__kind=kind).blocks[0].attention.in_norm
        text = jax.jit(lambda x: norm(x)).lower(stream()).compile().as_text()
        return len(re.findall(r"= \S+ reduce\(", text))

    def test_holds(self):
        assert self.reductions("layernorm") - self.reductions("rmsnorm") == 1

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            assert self.reductions("layernorm") - self.reductions("layernorm") == 1


# --- FlashAttention ----------------------------------------------------------------------------------------------


def core_products(backend: str, length: int = 2 * BLOCK, gradient: bool = False) -> float:
    """Products of scores and of mixing values in one layer, without those of the projections. A tile whose keys are all
    hidden counts as computed, as a masked pair does in the reference."""
    width = 64
    through, params = block(width, layers="attention", attention__num_heads=2, attention__backend=backend)

    def with_gradient(params, x):
        out, back = jax.vjp(through, params, x)
        return back(out)

    counted = flops.count(with_gradient if gradient else through, params, shape(1, length, width)).products
    # Each projection is one product, and two more for the gradients of its kernel and its input.
    return counted - (3 if gradient else 1) * formulas.block_flops(length, width)["projections"]


def check_as_many(**called: Any) -> None:
    assert core_products("flash", **called) == core_products("reference", **called)


class TestFlashForward:
    claim = "flash_same_flops"

    @pytest.mark.parametrize("tiles", [1, 2])
    def test_holds(self, tiles):
        """Where whole tiles fill the text."""
        check_as_many(length=tiles * BLOCK)
        assert core_products("flash") == formulas.block_flops(2 * BLOCK, 64)["attention"]

    def test_sabotage(self):
        with pytest.raises(AssertionError):
            check_as_many(length=BLOCK + 1)  # fills two tiles up with padding


class TestFlashWithGradient:
    claim = "flash_same_flops"

    def test_refuted(self):
        """With gradient FlashAttention computes 7 products for every 6 of ordinary attention: two forward, four
        backward, and the scores once more, which it did not keep."""
        with pytest.raises(AssertionError):
            check_as_many(gradient=True)
        forward = core_products("reference")
        assert core_products("reference", gradient=True) == 3 * forward
        assert core_products("flash", gradient=True) / core_products("reference", gradient=True) == 7 / 6

    def test_sabotage(self, monkeypatch):
        """With a back-end that keeps its scores the claim would be true, and the check can tell."""
        kept = dataclasses.replace(BACKENDS["flash"], build=BACKENDS["reference"].build)
        monkeypatch.setitem(BACKENDS._entries, "flash", kept)
        check_as_many(gradient=True)


# --- Bytes -------------------------------------------------------------------------------------------------------


def quadratic_term(width: int, heads: int) -> float:
    """Coefficient of length^2 in the bytes that the backward pass of one attention layer keeps."""

    def kept(length: int) -> int:
        made = config(d_model=width, num_layers=1, layers="attention", attention__num_heads=heads)
        made = replace(made, {"data.sequence_length": length, "train.batch_size": 1, "train.accumulate": 1})
        return memory.saved_bytes(accounting.make_program(made, 11))

    n = 512
    return (kept(3 * n) - 2 * kept(2 * n) + kept(n)) / (2 * n * n)


def check_memory_grows_with_width(heads_of) -> None:
    terms = [quadratic_term(width, heads_of(width)) for width in (16, 32, 64)]
    assert exponent([16, 32, 64], terms) == pytest.approx(1, abs=0.05)


class TestMemoryGrowsWithWidth:
    claim = "attention_memory_n2d"

    def test_refuted(self):
        """The quadratic term counts heads: it is the same at widths 16, 32 and 64, and grows with every head."""
        assert len({quadratic_term(width, 1) for width in (16, 32, 64)}) == 1
        # One mask serves all heads; the rest is theirs.
        one, two, three = (quadratic_term(64 * 3, heads) for heads in (1, 2, 3))
        assert three - two == two - one > 0.8 * one
        with pytest.raises(AssertionError):
            check_memory_grows_with_width(lambda width: 1)

    def test_sabotage(self):
        check_memory_grows_with_width(lambda width: width)  # with a head per feature the claim is true


class TestContextLimit:
    claim = "context_limited_by_kv_memory"
    BUDGET = 80 * 10**9  # one accelerator

    def room(self) -> int:
        """What the weights of Llama-2 7B leave in half precision."""
        return self.BUDGET - 2 * sum(components("llama2_7b").values())

    def check(self, kv_heads: int) -> int:
        """The longest context, at which the cache has used up what the weights left."""
        tokens = memory.longest_context(self.room(), 32, kv_heads, 128)
        used = memory.kv_cache_bytes(32, tokens, kv_heads, 128)
        assert used <= self.room() < memory.kv_cache_bytes(32, tokens + 1, kv_heads, 128)
        assert used > 2 * sum(components("llama2_7b").values()), "weights take more than the cache"
        return tokens

    def test_holds(self):
        full, grouped = self.check(32), self.check(8)
        assert full == pytest.approx(127_000, rel=0.01) and grouped == pytest.approx(4 * full, rel=0.001)
        # A window of 4,096 keys needs the same memory for any length.
        assert memory.kv_cache_bytes(32, 4096, 32, 128) < self.room()

    def test_sabotage(self, monkeypatch):
        monkeypatch.setattr(type(self), "BUDGET", 16 * 10**9)
        with pytest.raises(AssertionError, match="weights take more"):
            self.check(32)


# --- Decoding ----------------------------------------------------------------------------------------------------


def calls(monkeypatch, new_tokens: int, width: int) -> list[int]:
    """Tokens that each call of the model reads while text is generated."""
    made = build(replace(Config(), {"model.d_model": width, "model.num_layers": 1, "model.attention.num_heads": 1}), 11)
    original, seen = type(made).__call__, []

    def counting(self, tokens, **arguments):
        jax.debug.callback(lambda: seen.append(tokens.shape[1]))
        return original(self, tokens, **arguments)

    monkeypatch.setattr(type(made), "__call__", counting)
    generate(made, np.array([[1, 2, 3]]), new_tokens)
    jax.effects_barrier()
    return sorted(seen, reverse=True)


def check_sequential(seen: list[int], new_tokens: int) -> None:
    assert len(seen) in (new_tokens, new_tokens + 1)
    assert seen[0] >= 3 and set(seen[1:]) == {1}, "the prompt (padded) at once, then one token at a time"


class TestDecodingIsSequential:
    claim = "decode_is_sequential"

    def test_holds(self, monkeypatch):
        check_sequential(calls(monkeypatch, 5, width=10), 5)

    def test_sabotage(self, monkeypatch):
        with pytest.raises(AssertionError):
            check_sequential(calls(monkeypatch, 4, width=10), 6)
