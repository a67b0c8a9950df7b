"""Textbook formulas of attention and decoding: operations of a plain block, query-key pairs, the crossover.

Small pure functions of plain numbers; the tests compare them with what `flops` counts in traced programs.
"""

from __future__ import annotations


def block_flops(length: int, d_model: int, ratio: float = 4.0) -> dict[str, float]:
    """Forward operations of one plain block: heads that divide d_model between them, a two-layer network.

    Returns:
      `projections` 8 n d^2, `attention` (scores and mixing) 4 n^2 d, `ffn` 4 ratio n d^2; a multiply-add is two.
    """
    return {
        "projections": 8.0 * length * d_model**2,
        "attention": 4.0 * length**2 * d_model,
        "ffn": 4.0 * ratio * length * d_model**2,
    }


def crossover_length(d_model: int, ratio: float = 4.0, projections: bool = True) -> float:
    """The length beyond which attention costs more than the feed-forward network of its block.

    Args:
      projections: whether the four projections count as attention.
    """
    return (ratio - 2.0 * projections) * d_model


def attention_pairs(length: int, window: int = 0, causal: bool = False) -> int:
    """Query-key pairs of one head.

    Args:
      window: keys a query reaches at most, counted back from itself if causal, around itself otherwise; 0: all.
      causal: whether keys after the query are left out, those before the start included.
    """
    reach = min(window or length, length)
    return reach * (reach + 1) // 2 + (length - reach) * reach if causal else length * reach


def generated_pairs(tokens: int, cache: bool) -> int:
    """Query-key pairs of one head to generate `tokens` from nothing.

    Args:
      cache: whether keys and values are kept; without, every step computes the whole square of its prefix again.
    """
    return tokens * (tokens + 1) // 2 if cache else tokens * (tokens + 1) * (2 * tokens + 1) // 6


def reading_price(documents: int, tokens_each: int, price_per_million: float) -> float:
    """Price of handing all documents to a model once."""
    return documents * tokens_each * price_per_million / 1e6
