"""Accounting claims: the numbers somebody stated, recomputed from our own parameter trees, caches and calculators.

One function per claim, named like it. A claim is supported when every number agrees within the rounding it was stated
with, refuted when none does, and mixed otherwise. A claim that says more than its numbers has tests in tests/claims
instead.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablations.evidence import FormulaCheck, Number
from transformer.analysis import hardware
from transformer.analysis.formulas import attention_pairs, reading_price
from transformer.analysis.presets import PRESETS
from transformer.errors import UserError, did_you_mean

ROOT = Path(__file__).resolve().parents[1]
FORMULAS: dict[str, Callable[[], list[Number]]] = {}
GB, TB = 1e9, 1e12  # powers of ten; powers of two are written out where they are meant


def formula(function: Callable[[], list[Number]]) -> Callable[[], list[Number]]:
    """Registers a claim's numbers under its id."""
    FORMULAS[function.__name__] = function
    return function


def evaluate(name: str) -> FormulaCheck:
    """The numbers of one formula.

    Raises:
      UserError: there is none of this name.
    """
    if name not in FORMULAS:
        raise UserError(f"There is no formula {name!r}.{did_you_mean(name, FORMULAS)}")
    return FormulaCheck(tuple(FORMULAS[name]()))


# --- Models whose sizes are quoted -------------------------------------------------------------------------------

MODELS: dict[str, dict[str, Any]] = {
    "GPT-2 small": PRESETS["gpt2_124m"].overrides,
    "GPT-3": PRESETS["gpt3_175b"].overrides,
    "Llama-2-7B": PRESETS["llama2_7b"].overrides,
    "Llama-3-8B": PRESETS["llama3_8b"].overrides,
    "Llama-2-70B": PRESETS["llama2_70b"].overrides,
    "4 layers of width 128, 50,000 tokens": {"model.vocab_size": 50000},
}


def _config(**overrides: Any) -> Any:
    """The reference config with other fields, their dots written as double underscores."""
    from transformer.config import default_config, replace, resolve

    return replace(resolve(default_config()), {name.replace("__", "."): v for name, v in overrides.items()})


@functools.cache
def _components(model: str) -> dict[str, int]:
    return _count(MODELS[model])


def _count(overrides: dict[str, Any]) -> dict[str, int]:
    """Parameters by component; only shapes are made."""
    from transformer.analysis.accounting import declared_components

    return declared_components(_config(**overrides))


def _share(model: str, *components: str) -> float:
    counts = _components(model)
    return 100 * sum(counts.get(name, 0) for name in components) / sum(counts.values())


def _cache_bytes(model: str, length: int, itemsize: int = 2, **overrides: Any) -> int:
    """Bytes of the keys and values of one sequence, from the cache's own shapes."""
    import jax

    from transformer.model import declare

    config = _config(**{**MODELS[model], **overrides})
    model_: Any = declare(config)
    cache = jax.eval_shape(lambda: model_.empty_cache(1, length))
    return sum(math.prod(array.shape) * itemsize for array in (*cache.keys, *cache.values))


# --- Attention ---------------------------------------------------------------------------------------------------


@formula
def attention_matrix_sizes() -> list[Number]:
    from transformer.analysis.memory import attention_matrix_bytes

    return [
        Number("128k tokens in half precision", 32, attention_matrix_bytes(128_000) / GB, 1, "GB"),
        Number("131,072 tokens in half precision", 32, attention_matrix_bytes(131_072) / 2**30, 1, "GiB"),
        Number("100k tokens in half precision", 20, attention_matrix_bytes(100_000) / GB, 0.5, "GB"),
        Number("100k tokens in single precision", 40, attention_matrix_bytes(100_000, itemsize=4) / GB, 0.5, "GB"),
    ]


@formula
def flash_memory_examples() -> list[Number]:
    from transformer.analysis.memory import attention_matrix_bytes

    all_layers = attention_matrix_bytes(128_000, heads=32, layers=32)
    return [
        Number("64k tokens, 64 heads, half precision", 524, attention_matrix_bytes(64_000, heads=64) / GB, 0.5, "GB"),
        Number("128k tokens, 32 heads, 32 layers, half precision", 16.8, all_layers / TB, 0.05, "TB"),
        Number("the same in single precision", 16.8, 2 * all_layers / TB, 0.05, "TB"),
    ]


@formula
def flash_block_size() -> list[Number]:
    rows = hardware.flash_block_size(128 * 1024 // 2, head_dim=64)
    return [Number("rows of head width 64 in 128 KiB, half precision", 256, rows, 0.5)]


@formula
def sparse_numbers() -> list[Number]:
    full, local = attention_pairs(64_000), attention_pairs(64_000, window=256)
    longer, longer_local = attention_pairs(100_000), attention_pairs(100_000, window=256)
    return [
        Number("pairs of 64k tokens", 4e9, full, 0.5e9),
        Number("with a window of 256", 16e6, local, 0.5e6),
        Number("fewer by", 250, full / local, 0.5),
        Number("pairs of 100k tokens", 10e9, longer, 0.5e9),
        Number("with a window of 256", 25.6e6, longer_local, 0.05e6),
        Number("fewer by", 390, longer / longer_local, 5),
        Number("full scores, single precision", 40, 4 * longer / GB, 0.5, "GB"),
        Number("windowed scores, single precision", 100, 4 * longer_local / 1e6, 5, "MB"),
    ]


# --- Parameters --------------------------------------------------------------------------------------------------


@formula
def swiglu_param_accounting() -> list[Number]:
    width = 3 * 128
    sizes = {"model__d_model": width, "model__vocab_size": 256}
    square = width * width
    one_matrix = 4 * square
    gated = _count({**sizes, "model__ffn__kind": "swiglu"})["ffn"] / 4  # four blocks
    narrowed = _count({**sizes, "model__ffn__kind": "swiglu", "model__ffn__ratio": 8 / 3})["ffn"] / 4
    return [
        Number("matrices of a gated layer against one", 3, gated / one_matrix, 1e-9),
        Number("weights at inner width 8/3 d, in d^2", 8, narrowed / square, 1e-9),
    ]


@formula
def ffn_param_share() -> list[Number]:
    middle, half = 100 * (2 / 3 + 3 / 4) / 2, 100 * (3 / 4 - 2 / 3) / 2 + 0.05
    counts = _components("GPT-2 small")
    per_block = 100 * counts["ffn"] / (counts["ffn"] + counts["attention"] + counts["norm"])
    numbers = [Number("in a block of GPT-2 small", middle, per_block, half, "%")]
    return numbers + [Number(f"in all of {name}", middle, _share(name, "ffn"), half, "%") for name in MODELS]


@formula
def norm_params_trivial() -> list[Number]:
    def share(width: int) -> float:
        counts = _count({"model__d_model": width, "model__vocab_size": 256})
        return 100 * counts["norm"] / sum(counts.values())

    return [
        Number("share at width 128", 0, share(128), 0.5, "%"),
        Number("share at width 128 over that at width 1024", 8, share(128) / share(1024), 0.8),
    ]


@formula
def embedding_params_substantial() -> list[Number]:
    small = "4 layers of width 128, 50,000 tokens"
    return [
        Number("GPT-2 small, with positions", 31.7, _share("GPT-2 small", "embedding", "position"), 0.5, "%"),
        Number(small, 89, _share(small, "embedding"), 0.5, "%"),
        Number("GPT-3, with positions", 0.4, _share("GPT-3", "embedding", "position"), 0.05, "%"),
    ]


@formula
def ffn_dims_examples() -> list[Number]:
    from transformer.model.feedforward import hidden_width

    numbers = []
    for name, stated in (("bert_base", (768, 3072)), ("gpt3_175b", (12288, 49152))):
        model = PRESETS[name].config().model
        width, hidden = model.d_model, hidden_width(model)
        numbers.append(Number(f"{name}: width", stated[0], width, 0))
        numbers.append(Number(f"{name}: inner width", stated[1], hidden, 0))
        numbers.append(Number(f"{name}: their ratio", 4, hidden / width, 0))
    return numbers


@formula
def weight_count_formula() -> list[Number]:
    numbers = []
    for name in ("GPT-2 small", "GPT-3"):
        size = MODELS[name]
        layers, width, words = (size[f"model.{key}"] for key in ("num_layers", "d_model", "vocab_size"))
        stated = 12 * layers * width**2 + words * width
        measured = sum(_components(name).values())
        numbers.append(Number(f"{name}: 12 L d^2 + V d", stated / 1e6, measured / 1e6, 0.01 * stated / 1e6, "M"))
    return numbers


# --- Time ---------------------------------------------------------------------------------------------------------


@formula
def rmsnorm_speed() -> list[Number]:
    """What two authors state, 30% (to the nearest ten) and 10 to 20%, against what `python -m benchmarks.norm` measured
    last. An interval that reaches as far as a stated number does not make them agree."""
    path = ROOT / "benchmarks" / "results" / "norm.json"
    if not path.is_file():
        raise UserError("The speed of RMSNorm has not been measured: python -m benchmarks.norm --json=" + str(path))
    places = json.loads(path.read_text(encoding="utf-8"))["numbers"]
    return [
        Number(place, stated, row["rmsnorm"]["saved"], 5, "% saved", (row["rmsnorm"]["low"], row["rmsnorm"]["high"]))
        for place, row in places.items()
        for stated in (30, 15)
    ]


# --- Caches ------------------------------------------------------------------------------------------------------


@formula
def kv_cache_formula() -> list[Number]:
    numbers = []
    for name, layers, kv_heads in (("Llama-2-7B", 32, 32), ("Llama-2-70B", 80, 8)):
        stated = 2 * layers * 4096 * kv_heads * 128 * 2 / GB
        cache, double = _cache_bytes(name, 4096), _cache_bytes(name, 8192)
        numbers.append(Number(f"{name} at 4,096 tokens, half precision", stated, cache / GB, 0, "GB"))
        numbers.append(Number(f"{name}, twice the length", 2, double / cache, 0))
    return numbers


@formula
def gqa_cache_reduction() -> list[Number]:
    full = _cache_bytes("Llama-2-70B", 4096, **{"model.attention.num_kv_heads": 64})
    numbers = [
        Number(
            f"64 query heads, {kv} key-value heads",
            64 / kv,
            full / _cache_bytes("Llama-2-70B", 4096, **{"model.attention.num_kv_heads": kv}),
            0,
            "times smaller",
        )
        for kv in (1, 2, 4, 8)
    ]
    return [
        *numbers,
        Number("Llama-2-70B with all heads", 10.7, full / GB, 0.05, "GB"),
        Number("Llama-2-70B", 1.34, _cache_bytes("Llama-2-70B", 4096) / GB, 0.005, "GB"),
    ]


# --- Training at scale -------------------------------------------------------------------------------------------

LARGE = 175 * 10**9  # parameters


@formula
def adam_memory_total() -> list[Number]:
    """Half precision throughout; then 2 + 2 bytes and a single-precision master copy with two moments."""
    from transformer.analysis.memory import training_state_bytes

    half, mixed = training_state_bytes(LARGE, "half"), training_state_bytes(LARGE, "mixed")
    return [
        Number("weights, half precision", 350, half["weights"] / GB, 0.5, "GB"),
        Number("gradients, half precision", 350, half["gradients"] / GB, 0.5, "GB"),
        Number("moments, half precision", 700, half["optimizer"] / GB, 0.5, "GB"),
        Number("all, half precision", 1.4, sum(half.values()) / TB, 0.05, "TB"),
        Number("all, mixed precision (2 + 2 + 12 bytes)", 1.4, sum(mixed.values()) / TB, 0.05, "TB"),
    ]


@formula
def allreduce_volume() -> list[Number]:
    ring = hardware.all_reduce_bytes(2 * LARGE, devices=1000)
    return [Number("sent by each device of a ring, half precision", 175, ring / GB, 0.5, "GB")]


@formula
def zero3_share() -> list[Number]:
    share = hardware.sharded_state_bytes(2 * LARGE, 0, 0, devices=1000, stage=3)
    return [Number("parameters of each of 1,000 devices, half precision", 350, share / 1e6, 0.5, "MB")]


@formula
def context_cost_arithmetic() -> list[Number]:
    documents, tokens_each = 10_000_000, 1000
    return [
        Number("price of a query", 30_000, reading_price(documents, tokens_each, price_per_million=3), 0.5, "$"),
        Number("over a window of a million tokens", 10_000, documents * tokens_each / 1e6, 0.5, "times"),
    ]
