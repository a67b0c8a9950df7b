"""What a machine adds to the count: traffic between devices, traffic to main memory, and the roofline over both.

Small pure functions of plain numbers. Sizes are bytes where a name says so and elements otherwise.
"""

from __future__ import annotations

# --- Between devices ---------------------------------------------------------------------------------------------


def reduce_scatter_bytes(size: float, devices: int) -> float:
    """Bytes each of `devices` sends in a ring reduce-scatter (or all-gather) of an array of `size` bytes."""
    return (devices - 1) / devices * size


def all_reduce_bytes(size: float, devices: int) -> float:
    """Bytes each device sends in a ring all-reduce: a reduce-scatter and an all-gather (Patarasuk & Yuan 2009)."""
    return 2 * reduce_scatter_bytes(size, devices)


def sharded_state_bytes(weights: float, gradients: float, optimizer: float, devices: int, stage: int) -> float:
    """Bytes of training state on each device, by the stages of ZeRO (Rajbhandari et al. 2020).

    Args:
      weights, gradients, optimizer: bytes of the whole model, see `memory.training_state_bytes`.
      stage: 0 every device holds all; 1 the optimizer state is sharded; 2 also gradients; 3 also weights.
    """
    shards = [devices if stage >= needed else 1 for needed in (3, 2, 1)]
    return weights / shards[0] + gradients / shards[1] + optimizer / shards[2]


# --- To main memory ----------------------------------------------------------------------------------------------


def naive_attention_traffic(length: int, head_dim: int) -> int:
    """Elements one head moves when scores and weights are written out.

    Reads Q, K, V; writes the scores, reads them for the softmax, writes the weights, reads them again; writes the
    output.
    """
    return 4 * length * head_dim + 4 * length**2


def flash_block_size(fast_memory: int, head_dim: int) -> int:
    """Keys per block so that blocks of Q, K, V and the output fit into `fast_memory` elements (Dao et al. 2022,
    algorithm 1)."""
    return max(1, fast_memory // (4 * head_dim))


def flash_attention_traffic(length: int, head_dim: int, fast_memory: int) -> int:
    """Elements one head moves in FlashAttention's forward pass, counted load by load (Dao et al. 2022, algorithm 1).

    Every block of keys and values is loaded once; for each of them every block of queries, outputs and of the two
    running statistics is loaded, and outputs and statistics are written back.
    """
    keys = flash_block_size(fast_memory, head_dim)
    queries = min(keys, head_dim)
    moved = 0
    for first_key in range(0, length, keys):
        moved += 2 * (min(length, first_key + keys) - first_key) * head_dim
        for first in range(0, length, queries):
            rows = min(length, first + queries) - first
            moved += rows * (2 * head_dim + 2) + rows * (head_dim + 2)
    return moved


# --- Both together -----------------------------------------------------------------------------------------------


def attention_intensity(length: int, head_dim: int, traffic: int, itemsize: int = 2) -> float:
    """Floating-point operations of one head's two products per byte moved."""
    return 4 * length**2 * head_dim / (traffic * itemsize)


def ridge_point(peak: float, bandwidth: float) -> float:
    """Operations per byte above which a machine is bound by arithmetic (Williams et al. 2009).

    Args:
      peak: operations per second.
      bandwidth: bytes per second.
    """
    return peak / bandwidth


def attainable(intensity: float, peak: float, bandwidth: float) -> float:
    """Operations per second the roofline allows at an intensity."""
    return min(peak, intensity * bandwidth)


def seconds(operations: float, moved: float, peak: float, bandwidth: float) -> float:
    """Time of a kernel at the roofline: arithmetic and traffic overlap, the longer one counts."""
    return max(operations / peak, moved / bandwidth)
