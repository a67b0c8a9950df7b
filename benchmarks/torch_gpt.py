"""A plain GPT in PyTorch: the peer that our training step is measured against.

The model of Radford et al. (2019) with the choices of our side, so that both do the same work: pre-norm
blocks, learned positions, exact GELU, no biases anywhere, no dropout, logits from the embedding table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a model. The feed-forward network is four times as wide as the residual stream."""

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    sequence_length: int


class CausalSelfAttention(nn.Module):
    """Queries, keys and values in one product; the heads through PyTorch's fused attention."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.num_heads = shape.num_heads
        self.query_key_value = nn.Linear(shape.d_model, 3 * shape.d_model, bias=False)
        self.output = nn.Linear(shape.d_model, shape.d_model, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = (
            part.view(B, T, self.num_heads, -1).transpose(1, 2) for part in self.query_key_value(x_BTD).split(D, dim=2)
        )
        o_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        return self.output(o_BHTK.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.d_model, bias=False)
        self.attention = CausalSelfAttention(shape)
        self.ffn_norm = nn.LayerNorm(shape.d_model, bias=False)
        self.up = nn.Linear(shape.d_model, 4 * shape.d_model, bias=False)
        self.down = nn.Linear(4 * shape.d_model, shape.d_model, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        return x_BTD + self.down(F.gelu(self.up(self.ffn_norm(x_BTD))))


class GPT(nn.Module):
    """Windows of tokens in, mean loss out."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.position = nn.Embedding(shape.sequence_length, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.final_norm = nn.LayerNorm(shape.d_model, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes_into_stream = name.endswith(("output.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * shape.num_layers) if writes_into_stream else 0.02)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Mean nats per predicted token of windows [B, T + 1]."""
        inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        x_BTD = self.embedding(inputs_BT) + self.position.weight[: inputs_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV = F.linear(self.final_norm(x_BTD), self.embedding.weight)
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def make_optimizer(
    model: GPT, learning_rate: float, weight_decay: float, beta1: float, beta2: float, epsilon: float
) -> torch.optim.Optimizer:
    """AdamW in PyTorch's fused kernel; decays tables and matrices but not gains."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() == 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), eps=epsilon, fused=True)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, tokens_BT: torch.Tensor, clip: float
) -> torch.Tensor:
    """One optimizer step on windows [B, T + 1]; the loss before it, not yet read."""
    loss = model(tokens_BT)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def load_weights(model: GPT, params: Mapping[str, np.ndarray]) -> None:
    """Copies the weights of our model in, so that both sides start from the same point.

    Args:
      params: arrays by parameter path, `blocks.0.attention.branch.query.kernel`; kernels are [d_in, d_out].
    """

    def copy(weight: torch.Tensor, *paths: str) -> None:
        source = np.concatenate([params[path] for path in paths], axis=-1)
        weight.copy_(torch.from_numpy(source.T if paths[0].endswith("kernel") else source))

    copy(model.embedding.weight, "embedding.table")
    copy(model.position.weight, "position.table")
    copy(model.final_norm.weight, "final_norm.gain")
    for i, block in enumerate(model.blocks):
        attention, ffn = f"blocks.{i}.attention", f"blocks.{i}.ffn"
        copy(block.attention_norm.weight, f"{attention}.in_norm.gain")
        copy(
            block.attention.query_key_value.weight,
            *(f"{attention}.branch.{part}.kernel" for part in ("query", "key", "value")),
        )
        copy(block.attention.output.weight, f"{attention}.branch.output.kernel")
        copy(block.ffn_norm.weight, f"{ffn}.in_norm.gain")
        copy(block.up.weight, f"{ffn}.branch.up.kernel")
        copy(block.down.weight, f"{ffn}.branch.down.kernel")
