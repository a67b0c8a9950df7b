"""Where the parameters of BERT, T5 and Marian go in ours; see `weights.py` for what the decoders share."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tests.golden.weights import SIZES, Golden, Weights
from transformer.analysis.presets import BERT_STYLE, T5_STYLE, VASWANI_STYLE


def renamed(theirs: Weights, rules: dict[str, str]) -> dict[str, np.ndarray]:
    """Our parameters from theirs by patterns of whole names; kernels, which are `torch.nn.Linear`'s, are turned.

    Raises:
      AssertionError: a parameter that no pattern knows.
    """
    ours: dict[str, np.ndarray] = {}
    for name, value in theirs.items():
        found = [re.sub(rule, ours, name) for rule, ours in rules.items() if re.fullmatch(rule, name)]
        assert found, f"nobody knows {name}"
        ours[found[0]] = value.T if found[0].endswith("kernel") else value
    return ours


def both(their_prefix: str, our_prefix: str, kernel: str = "kernel", suffix: str = "") -> dict[str, str]:
    """The patterns of a weight and a bias."""
    return {
        rf"{their_prefix}\.weight{suffix}": rf"{our_prefix}.{kernel}",
        rf"{their_prefix}\.bias{suffix}": rf"{our_prefix}.bias",
    }


# --- BERT --------------------------------------------------------------------------------------------------------

_BERT_LAYER = r"bert\.encoder\.layer\.(\d+)"
BERT_RULES = {
    r"bert\.embeddings\.word_embeddings\.weight": "embedding.table",
    r"bert\.embeddings\.position_embeddings\.weight": "position.table",
    r"bert\.embeddings\.token_type_embeddings\.weight": "token_types.table",
    **both(r"bert\.embeddings\.LayerNorm", "embedding_norm", "gain"),
    **both(rf"{_BERT_LAYER}\.attention\.self\.(\w+)", r"blocks.\1.attention.branch.\2"),
    **both(rf"{_BERT_LAYER}\.attention\.output\.dense", r"blocks.\1.attention.branch.output"),
    **both(rf"{_BERT_LAYER}\.attention\.output\.LayerNorm", r"blocks.\1.attention.out_norm", "gain"),
    **both(rf"{_BERT_LAYER}\.intermediate\.dense", r"blocks.\1.ffn.branch.up"),
    **both(rf"{_BERT_LAYER}\.output\.dense", r"blocks.\1.ffn.branch.down"),
    **both(rf"{_BERT_LAYER}\.output\.LayerNorm", r"blocks.\1.ffn.out_norm", "gain"),
    **both(r"cls\.predictions\.transform\.dense", "head.dense"),
    **both(r"cls\.predictions\.transform\.LayerNorm", "head.norm", "gain"),
    r"cls\.predictions\.bias": "head.bias",
}


def bert(theirs: Weights) -> dict[str, np.ndarray]:
    return renamed(theirs, BERT_RULES)


# --- T5 ----------------------------------------------------------------------------------------------------------


def _t5_rules(stack: str, ours: str, ffn: int) -> dict[str, str]:
    layer = rf"{stack}\.block\.(\d+)\.layer"
    part = {"q": "query", "k": "key", "v": "value", "o": "output"}
    rules = {
        rf"{stack}\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight": f"{ours}position.table",
        rf"{stack}\.final_layer_norm\.weight": f"{ours}final_norm.gain",
        rf"{layer}\.0\.layer_norm\.weight": rf"{ours}blocks.\1.attention.in_norm.gain",
        rf"{layer}\.{ffn}\.layer_norm\.weight": rf"{ours}blocks.\1.ffn.in_norm.gain",
        rf"{layer}\.{ffn}\.DenseReluDense\.wi\.weight": rf"{ours}blocks.\1.ffn.branch.up.kernel",
        rf"{layer}\.{ffn}\.DenseReluDense\.wo\.weight": rf"{ours}blocks.\1.ffn.branch.down.kernel",
    }
    for letter, name in part.items():
        rules[rf"{layer}\.0\.SelfAttention\.{letter}\.weight"] = rf"{ours}blocks.\1.attention.branch.{name}.kernel"
        if ffn == 2:
            reader = rf"blocks.\1.cross_attention.branch.{name}.kernel"
            rules[rf"{layer}\.1\.EncDecAttention\.{letter}\.weight"] = reader
    if ffn == 2:
        rules[rf"{layer}\.1\.layer_norm\.weight"] = r"blocks.\1.cross_attention.in_norm.gain"
    return rules


def t5(theirs: Weights) -> dict[str, np.ndarray]:
    shared = {r"shared\.weight": "embedding.table"}
    return renamed(theirs, shared | _t5_rules("encoder", "encoder.", 1) | _t5_rules("decoder", "", 2))


# --- Marian ------------------------------------------------------------------------------------------------------


def _marian_rules(stack: str, ours: str) -> dict[str, str]:
    layer, block = rf"model\.{stack}\.layers\.(\d+)", rf"{ours}blocks.\1"
    rules: dict[str, str] = {}
    for attention, sublayer in (("self_attn", "attention"), ("encoder_attn", "cross_attention")):
        for letter, name in {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}.items():
            rules |= both(rf"{layer}\.{attention}\.{letter}", rf"{block}.{sublayer}.branch.{name}")
        rules |= both(rf"{layer}\.{attention}_layer_norm", rf"{block}.{sublayer}.out_norm", "gain")
    rules |= both(rf"{layer}\.fc1", rf"{block}.ffn.branch.up") | both(rf"{layer}\.fc2", rf"{block}.ffn.branch.down")
    return rules | both(rf"{layer}\.final_layer_norm", rf"{block}.ffn.out_norm", "gain")


def marian(theirs: Weights) -> dict[str, np.ndarray]:
    """Marian's sinusoids are all sines, then all cosines, ours take turns: the stream's features are reordered."""
    weights = {name: value for name, value in theirs.items() if "embed_positions" not in name}
    shared = {r"model\.shared\.weight": "embedding.table"}
    ours = renamed(weights, shared | _marian_rules("encoder", "encoder.") | _marian_rules("decoder", ""))
    return {name: in_turns(name, value) for name, value in ours.items()}


def in_turns(name: str, value: np.ndarray) -> np.ndarray:
    """The axis of a parameter that runs along the stream, with feature i + d_model / 2 right behind feature i."""
    half = np.arange(SIZES["model.d_model"]).reshape(2, -1).T.reshape(-1)
    writes = name.endswith(("output.kernel", "output.bias", "down.kernel", "down.bias", "gain", "norm.bias", "table"))
    if writes:
        return value[..., half]
    return value[half] if name.endswith("kernel") else value


GOLDEN_FAMILIES: dict[str, Golden] = {
    "bert": Golden(SIZES | BERT_STYLE, bert),
    "t5": Golden(
        SIZES
        | T5_STYLE
        | {
            "model.encoder.num_layers": 3,
            "model.attention.head_dim": 6,
            "model.ffn.ratio": 2.5,
            "model.position.t5_buckets": 8,
            "model.position.t5_max_distance": 10,
        },
        t5,
    ),
    "marian": Golden(SIZES | VASWANI_STYLE | {"model.attention.bias": True}, marian),
}

# Sabotage: one switch set wrong must be noticed.
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"model.norm.epsilon": 1e-5}),
    ("bert", {"model.ffn.kind": "gelu_tanh"}),
    ("bert", {"model.attention.mask": "causal"}),
    ("t5", {"model.attention.scale": "inv_sqrt"}),
    ("t5", {"model.embedding.logit_scale": 1.0}),
    ("t5", {"model.position.t5_max_distance": 12}),
    ("t5", {"model.encoder.attention.mask": "causal"}),
    ("t5", {"model.norm.epsilon": 1e-5}),
    ("marian", {"model.embedding.scale": 1.0}),
    ("marian", {"model.encoder.position.kind": "none"}),
    ("marian", {"model.residual.cross_attention.skip_gain": 0.9}),
    ("marian", {"model.ffn.kind": "gelu"}),
]
