"""One attention layer in float64 NumPy, one query of one head at a time, written from the config alone."""

from __future__ import annotations

import numpy as np

from transformer.schema import Config


def softmax(scores: np.ndarray, sink: float | None = None) -> np.ndarray:
    """Weights of one query; a sink takes its share and gives nothing."""
    highest = max(scores.max(), -np.inf if sink is None else sink)
    e = np.exp(scores - highest)
    return e / (e.sum() + (0.0 if sink is None else np.exp(sink - highest)))


def attend(params: dict[str, np.ndarray], config: Config, x: np.ndarray, causal: bool = True) -> np.ndarray:
    """Output [B, T, D] without positions.

    Args:
      params: weights of the layer by dotted name.
      x: [B, T, D].
    """
    a, (B, T, D) = config.model.attention, x.shape
    H, G = a.num_heads, a.num_kv_heads or a.num_heads
    K = a.head_dim or D // H
    U = a.value_dim or K
    p = {name: value.astype(np.float64) for name, value in params.items()}
    x = x.astype(np.float64)

    def linear(name: str, y: np.ndarray) -> np.ndarray:
        return y @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0.0)

    def normed(y: np.ndarray) -> np.ndarray:
        return y / np.sqrt((y**2).mean() + 1e-6)

    scored = a.weights not in ("uniform", "fixed_offset")
    q = linear("query", x) if scored else None
    k = q if a.tie in ("qk", "qkv") else linear("key", x) if scored else None
    v = k if a.tie in ("kv", "qkv") else x if a.value_projection == "identity" else linear("value", x)

    heads = np.zeros((B, T, H * U))
    for b in range(B):
        for h in range(H):
            g = h // (H // G)
            value = v[b, :, g * U : (g + 1) * U]
            for t in range(T):
                seen = [s for s in range(T if not causal else t + 1) if not a.window or abs(t - s) < a.window]
                scores = np.zeros(len(seen))
                scale = {"inv_sqrt": K**-0.5, "inv": 1 / K, "none": 1.0, "none_matched": 1.0, "learned": K**-0.5}[
                    a.scale
                ]
                scale = scale * p["scale.gain"][h] if a.scale == "learned" else scale
                query = q[b, t, h * K : (h + 1) * K] if scored else np.zeros(K)
                if a.qk_norm == "rms":
                    query = normed(query) * p["query_norm.gain"][h * K : (h + 1) * K]
                elif a.qk_norm == "l2":
                    query = normed(query) * p["query_norm.gain"][h]
                for i, s in enumerate(seen if scored else ()):
                    key = k[b, s, g * K : (g + 1) * K]
                    if a.qk_norm == "rms":
                        key = normed(key) * p["key_norm.gain"][g * K : (g + 1) * K]
                    elif a.qk_norm == "l2":
                        key = normed(key)
                    scores[i] = query @ key * scale
                    if a.soft_cap:
                        scores[i] = a.soft_cap * np.tanh(scores[i] / a.soft_cap)
                values = value[seen]
                if a.memory == "persistent":
                    rows = p["memory.key"][:, g * K : (g + 1) * K], p["memory.value"][:, g * U : (g + 1) * U]
                    scores = np.append(scores, rows[0] @ query * scale)
                    values = np.concatenate([values, rows[1]])
                heads[b, t, h * U : (h + 1) * U] = weigh(a, p, h, t, np.array(seen), scores) @ values

    if a.gate == "sigmoid":
        heads = heads / (1 + np.exp(-linear("gate", x)))
    if a.output_projection == "none":
        return heads
    if a.output_projection == "full":
        return linear("output", heads)
    blocks = p["output.kernel"].reshape(H, U, D // H)
    parts = [heads[..., h * U : (h + 1) * U] @ blocks[h] for h in range(H)]
    return np.concatenate(parts, axis=-1) + p.get("output.bias", 0.0)


def weigh(a, p: dict[str, np.ndarray], h: int, t: int, seen: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Weights of query t of head h over the keys it sees."""
    n = len(seen)
    if a.weights == "softmax":
        sink = {"none": None, "zero_key": 0.0}.get(a.sinks, p.get("weights.sink.logit", np.zeros(a.num_heads))[h])
        return softmax(scores, sink)
    if a.weights == "shaped":
        alpha, beta, gamma = (p[f"weights.{name}"][h] for name in ("alpha", "beta", "gamma"))
        return alpha * (seen == t) + beta * softmax(scores) - gamma / n
    return {
        "softmax1": lambda: softmax(scores, 0.0),
        "sigmoid": lambda: 1 / (1 + np.exp(-scores)),
        "sigmoid_bias": lambda: 1 / (1 + n * np.exp(-scores)),
        "relu": lambda: np.maximum(scores, 0) / n,
        "raw": lambda: scores,
        "raw_mean": lambda: scores / n,
        "uniform": lambda: np.full(n, 1 / n),
        "fixed_offset": lambda: (t - seen == a.offset).astype(float),
    }[a.weights]()
