"""Where the parameters of other implementations go in ours, and their models rebuilt from the fixtures.

Names on the left are ours (`path_name`), names on the right theirs. Three differences of layout recur:

  kernels      theirs are [d_out, d_in] (`torch.nn.Linear`), ours [d_in, d_out]; GPT-2's `Conv1D` is already ours
  q, k, v      GPT-2 keeps them side by side in one kernel, ours are three
  norm of q, k Qwen3 shares one gain [head_dim] between heads, ours has a gain for every head: repeated

Rotary positions need no permutation: Hugging Face's checkpoints pair feature j with j + head_dim / 2, as we do.
A padded batch is given by `segments` (1 for tokens, 0 for padding) and, for padding on the left, by `positions`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.tiny import named, nested
from transformer.analysis.presets import GPT2_STYLE, LLAMA_STYLE
from transformer.config import resolve
from transformer.model import declare, split
from transformer.model.initialization import path_name

HERE = Path(__file__).parent
Weights = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """One forward call: its arguments under their names, and the logits it gave."""

    inputs: dict[str, np.ndarray]
    logits: np.ndarray


@dataclasses.dataclass(frozen=True)
class Golden:
    """One other implementation.

    Attributes:
      overrides: our settings of the same model, by dotted name.
      translate: their parameters -> ours, by name.
    """

    overrides: dict[str, Any]
    translate: Callable[[Weights], dict[str, np.ndarray]]


def read(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Case]]:
    """(about, weights, cases) of a fixture."""
    with np.load(HERE / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    about = json.loads(str(arrays.pop("about")))
    weights = {key.removeprefix("weights/"): arrays.pop(key) for key in [k for k in arrays if k.startswith("weights/")]}
    cases = {}
    for case in dict.fromkeys(key.split("/")[0] for key in arrays):
        inputs = {key.split("/")[2]: value for key, value in arrays.items() if key.startswith(f"{case}/in/")}
        cases[case] = Case(inputs, arrays[f"{case}/out"])
    return about, weights, cases


def rebuild(overrides: Mapping[str, Any], ours: Mapping[str, np.ndarray]) -> nnx.Module:
    """Our model with these weights; each of its parameters must be given, in its shape, and nothing else."""
    structure, params, state = split(declare(resolve(nested(dict(overrides)))))
    wanted = {name: leaf.shape for name, leaf in named(nnx.to_pure_dict(params)).items()}
    assert wanted == {name: value.shape for name, value in ours.items()}
    filled = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(ours[path_name(path)]), nnx.to_pure_dict(params)
    )
    return nnx.merge(structure, filled, nnx.to_pure_dict(state))


def logits(model: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Our logits for arguments under Hugging Face's names."""
    ours = {"attention_mask": "segments_BT", "position_ids": "positions_BT", "token_type_ids": "token_types_BT"}
    tokens = "input_ids"
    if "decoder_input_ids" in inputs:
        tokens = "decoder_input_ids"
        ours = {
            "decoder_attention_mask": "segments_BT",
            "input_ids": "source_BS",
            "attention_mask": "source_segments_BS",
        }
    arguments = {ours[name]: jnp.asarray(value) for name, value in inputs.items() if name != tokens}
    with jax.default_matmul_precision("highest"):
        return np.asarray(model(jnp.asarray(inputs[tokens]), **arguments))


def worst(model: Any, case: Case, is_token: np.ndarray | None = None) -> float:
    """Largest absolute difference of the logits, over all tokens that are no padding."""
    if is_token is None:
        of_targets = "decoder_" if "decoder_input_ids" in case.inputs else ""
        unpadded = np.ones_like(case.inputs[f"{of_targets}input_ids"])
        is_token = case.inputs.get(f"{of_targets}attention_mask", unpadded) != 0
    return float(np.abs(logits(model, case.inputs) - case.logits)[is_token].max())


# --- GPT-2 -------------------------------------------------------------------------------------------------------


def gpt2(theirs: Weights) -> dict[str, np.ndarray]:
    ours = {
        "embedding.table": theirs["transformer.wte.weight"],
        "position.table": theirs["transformer.wpe.weight"],
        "final_norm.gain": theirs["transformer.ln_f.weight"],
        "final_norm.bias": theirs["transformer.ln_f.bias"],
    }
    for i in layers(theirs, "transformer.h"):
        block, their_block = f"blocks.{i}", f"transformer.h.{i}"
        for part in ("kernel", "bias"):
            suffix = "weight" if part == "kernel" else "bias"
            q, k, v = np.split(theirs[f"{their_block}.attn.c_attn.{suffix}"], 3, axis=-1)
            ours |= {
                f"{block}.attention.branch.query.{part}": q,
                f"{block}.attention.branch.key.{part}": k,
                f"{block}.attention.branch.value.{part}": v,
                f"{block}.attention.branch.output.{part}": theirs[f"{their_block}.attn.c_proj.{suffix}"],
                f"{block}.ffn.branch.up.{part}": theirs[f"{their_block}.mlp.c_fc.{suffix}"],
                f"{block}.ffn.branch.down.{part}": theirs[f"{their_block}.mlp.c_proj.{suffix}"],
            }
        for sublayer, norm in (("attention", "ln_1"), ("ffn", "ln_2")):
            ours[f"{block}.{sublayer}.in_norm.gain"] = theirs[f"{their_block}.{norm}.weight"]
            ours[f"{block}.{sublayer}.in_norm.bias"] = theirs[f"{their_block}.{norm}.bias"]
    return ours


# --- Llama and its relatives -------------------------------------------------------------------------------------


def llama(theirs: Weights) -> dict[str, np.ndarray]:
    ours = {
        "embedding.table": theirs["model.embed_tokens.weight"],
        "final_norm.gain": theirs["model.norm.weight"],
        "unembedding.kernel": theirs["lm_head.weight"].T,
    }
    for i in layers(theirs, "model.layers"):
        block, their_block = f"blocks.{i}", f"model.layers.{i}"
        for part, their_part in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
            kernel = theirs[f"{their_block}.self_attn.{their_part}_proj.weight"]
            ours[f"{block}.attention.branch.{part}.kernel"] = kernel.T
        for part in ("gate", "up", "down"):
            ours[f"{block}.ffn.branch.{part}.kernel"] = theirs[f"{their_block}.mlp.{part}_proj.weight"].T
        ours[f"{block}.attention.in_norm.gain"] = theirs[f"{their_block}.input_layernorm.weight"]
        ours[f"{block}.ffn.in_norm.gain"] = theirs[f"{their_block}.post_attention_layernorm.weight"]
    return ours


def qwen3(theirs: Weights) -> dict[str, np.ndarray]:
    ours = llama(theirs)
    for i in layers(theirs, "model.layers"):
        for part, heads in (("query", 4), ("key", 2)):
            gain = theirs[f"model.layers.{i}.self_attn.{part[0]}_norm.weight"]
            ours[f"blocks.{i}.attention.branch.{part}_norm.gain"] = np.tile(gain, heads)
    return ours


def layers(theirs: Weights, prefix: str) -> range:
    """Indices of the layers below `prefix`."""
    depth = prefix.count(".") + 1
    return range(1 + max(int(name.split(".")[depth]) for name in theirs if name.startswith(prefix + ".")))


SIZES = {
    "model.vocab_size": 23,
    "model.d_model": 16,
    "model.num_layers": 2,
    "model.attention.num_heads": 4,
    "data.sequence_length": 12,
}
GPT2 = SIZES | GPT2_STYLE
LLAMA = SIZES | LLAMA_STYLE | {"model.attention.num_kv_heads": 2, "model.ffn.ratio": 1.5}
MISTRAL = LLAMA | {"model.attention.window": 5}
QWEN3 = LLAMA | {
    "model.attention.head_dim": 6,
    "model.attention.qk_norm": "rms",
    "model.norm.epsilon": 1e-6,
    "model.position.rope_base": 1000.0,
}

GOLDEN = {
    "gpt2": Golden(GPT2, gpt2),
    "llama": Golden(LLAMA, llama),
    "mistral": Golden(MISTRAL, llama),
    "qwen3": Golden(QWEN3, qwen3),
}
