"""What a model costs: parameters by component, floating-point operations, bytes of training state."""

from __future__ import annotations

import collections
import math
from typing import Any

import jax

from transformer.model.feedforward import hidden_width
from transformer.model.initialization import path_name
from transformer.model.layer_pattern import layer_kinds
from transformer.schema import Config


def parameters_by_component(params: Any) -> dict[str, int]:
    """Number of parameters by component, blocks summed: {"embedding": ..., "attention": ..., "ffn": ..., ...}."""
    counts: collections.Counter[str] = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts = path_name(path).split(".")
        component = parts[2] if parts[0] == "blocks" else parts[0]
        in_norm = any(part.endswith("norm") for part in parts)
        counts["norm" if in_norm else component] += math.prod(leaf.shape)
    return dict(counts)


def train_flops_per_token(config: Config, params: Any) -> float:
    """Estimated floating-point operations of one training token, forward and backward.

    Six per weight of a matrix product (two forward, four backward; Kaplan et al. 2020, table 1), plus
    12 * layers with attention * sequence_length * heads * head_dim for scores and weighted values over the full square.
    """
    model = config.model
    kinds = layer_kinds(model)
    with_attention, with_ffn = sum(k != "ffn" for k in kinds), sum(k != "attention" for k in kinds)
    matrices = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        if name.endswith("kernel"):  # the shared feed-forward network is stored once and used in every layer
            matrices += math.prod(leaf.shape) * (with_ffn if name.startswith("ffn.") else 1)
    if model.embedding.tie:
        matrices += math.prod(params["embedding"]["table"].shape)
    width = model.attention.num_heads * (model.attention.head_dim or model.d_model // model.attention.num_heads)
    return 6.0 * matrices + 12.0 * with_attention * config.data.sequence_length * width


def state_bytes(state: Any) -> int:
    """Bytes of a training state: parameters, moments, mutable model state."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))


def activation_bytes(config: Config, vocab_size: int) -> int:
    """Rough bytes of activations kept for the backward pass of one microbatch.

    Counts, per token and layer, about 10 vectors of d_model, the hidden vector twice and the scores three times;
    plus logits and their gradient once.
    """
    model, length = config.model, config.data.sequence_length
    batch = config.train.batch_size // config.train.accumulate
    itemsize = 2 if config.numerics.compute_dtype == "bfloat16" else 4
    hidden = hidden_width(model) if model.ffn.kind != "none" else 0
    per_token = model.num_layers * (10 * model.d_model + 2 * hidden + 3 * model.attention.num_heads * length)
    return int(batch * length * (per_token + 2 * vocab_size) * itemsize)
