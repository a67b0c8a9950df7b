"""Makes the fixtures of the golden tests: what independent implementations compute from random weights.

    python tests/golden/make_fixtures.py [NAME ...]

needs torch and Hugging Face transformers, which the project itself never does. No network: a model is made from a
config written here and its weights are drawn here. Each fixture is one `NAME.npz` beside this file with

    about               JSON: class, config, versions
    weights/PARAMETER   the model's own parameters under their own names, float32; tied ones once
    CASE/in/ARGUMENT    arguments of its forward call
    CASE/out            its logits, float32

To add a model, add a function to `FIXTURES`; then say in `weights.py` where its parameters go.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
VOCAB, LENGTH, BATCH = 23, 12, 3
Cases = dict[str, dict[str, np.ndarray]]


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights under which every part matters: kernels keep the size of what they read, gains and biases differ from
    one and zero, embeddings are small enough for the epsilon of a norm to be seen."""
    generator = torch.Generator().manual_seed(seed)
    norms = {id(p) for m in model.modules() if "norm" in type(m).__name__.lower() for p in m.parameters(recurse=False)}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in norms and name.endswith("weight"):
            value = 1 + 0.3 * noise
        elif id(parameter) in tables:
            value = 0.05 * noise
        elif parameter.ndim == 1:
            value = 0.2 * noise
        else:
            value = noise * 1.5 / parameter.shape[-1] ** 0.5
        parameter.data.copy_(value)


def text_cases(vocab: int = VOCAB, positions: bool = True) -> Cases:
    """A batch without padding, and one with rows of three lengths padded on the right and on the left.

    Args:
      positions: whether padded cases come with `position_ids`; models that count them themselves take none.
    """
    tokens = np.random.default_rng(0).integers(0, vocab, (BATCH, LENGTH))
    lengths = np.array([LENGTH, LENGTH - 3, LENGTH - 7])[:, None]
    cases: Cases = {"plain": {"input_ids": tokens}}
    for side, mask in {
        "right": np.arange(LENGTH) < lengths,
        "left": np.arange(LENGTH) >= LENGTH - lengths,
    }.items():
        cases[side] = {"input_ids": np.where(mask, tokens, 0), "attention_mask": mask.astype(np.int64)}
        if positions:
            cases[side]["position_ids"] = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return cases


# --- The models --------------------------------------------------------------------------------------------------


def gpt2() -> tuple[torch.nn.Module, Cases]:
    """Learned positions, LayerNorm with bias, biases everywhere, GELU by tanh, tied embeddings."""
    config = transformers.GPT2Config(vocab_size=VOCAB, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config), text_cases()


LLAMA_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def llama() -> tuple[torch.nn.Module, Cases]:
    """Grouped queries, rotary positions in two halves, RMSNorm, SwiGLU, untied."""
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_LIKE, rms_norm_eps=1e-5)), text_cases()


def mistral() -> tuple[torch.nn.Module, Cases]:
    """As Llama, with a window of five keys."""
    config = transformers.MistralConfig(**LLAMA_LIKE, rms_norm_eps=1e-5, sliding_window=5, head_dim=4)
    return transformers.MistralForCausalLM(config), text_cases()


def qwen3() -> tuple[torch.nn.Module, Cases]:
    """As Llama, with an RMSNorm on every query and key head, heads wider than d_model / heads, another base."""
    config = transformers.Qwen3Config(**LLAMA_LIKE, rms_norm_eps=1e-6, head_dim=6, rope_theta=1_000.0)
    return transformers.Qwen3ForCausalLM(config), text_cases()


FIXTURES: dict[str, Callable[[], tuple[torch.nn.Module, Cases]]] = {
    "gpt2": gpt2,
    "llama": llama,
    "mistral": mistral,
    "qwen3": qwen3,
}


# --- Writing them ------------------------------------------------------------------------------------------------


def make(name: str) -> dict[str, np.ndarray]:
    """The arrays of one fixture."""
    model, cases = FIXTURES[name]()
    model.set_attn_implementation("eager")
    randomize(model, seed=1)
    model.eval().float()
    arrays = {f"weights/{key}": value.detach().numpy() for key, value in model.named_parameters()}
    for case, arguments in cases.items():
        with torch.no_grad():
            output = model(**{key: torch.from_numpy(value) for key, value in arguments.items()}, use_cache=False)
        arrays |= {f"{case}/in/{key}": value.astype(np.int32) for key, value in arguments.items()}
        arrays[f"{case}/out"] = output.logits.numpy()
    about = {
        "class": type(model).__name__,
        "config": model.config.to_diff_dict(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    arrays["about"] = np.array(json.dumps(about, sort_keys=True, default=str))
    return arrays


def main() -> None:
    for name in sys.argv[1:] or FIXTURES:
        arrays = make(name)
        np.savez_compressed(HERE / f"{name}.npz", **arrays)
        print(f"{name}: {(HERE / f'{name}.npz').stat().st_size / 1024:.0f} KiB, {len(arrays)} arrays")


if __name__ == "__main__":
    main()
