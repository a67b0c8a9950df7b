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
        if "embed_positions" in name:  # Marian's sinusoids, which are no weights
            continue
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


def bert() -> tuple[torch.nn.Module, Cases]:
    """An encoder: post-LN, learned positions, token types, a norm on the embedding, a head with a layer of its own."""
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
    )
    cases = text_cases(positions=False)
    del cases["left"]
    types = np.random.default_rng(1).integers(0, 2, (BATCH, LENGTH))
    return transformers.BertForMaskedLM(config), {k: v | {"token_type_ids": types} for k, v in cases.items()}


def pair_cases() -> Cases:
    """Sources and shorter targets, without padding and with both padded on the right."""
    draw = np.random.default_rng(0)
    source, target = draw.integers(3, VOCAB, (BATCH, LENGTH)), draw.integers(3, VOCAB, (BATCH, LENGTH - 3))
    plain = {"input_ids": source, "decoder_input_ids": target}
    padded, lengths = {}, np.array([0, 2, 5])[:, None]
    for ids, mask in (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask")):
        real = np.arange(plain[ids].shape[1]) < plain[ids].shape[1] - lengths
        padded |= {ids: np.where(real, plain[ids], 0), mask: real.astype(np.int64)}
    return {"plain": plain, "right": padded}


def t5() -> tuple[torch.nn.Module, Cases]:
    """Bucketed distances (one table a stack), RMSNorm, unscaled attention, scaled tied logits, no biases."""
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=6,
        d_ff=40,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=10,
        tie_word_embeddings=True,
    )
    return transformers.T5ForConditionalGeneration(config), pair_cases()


def marian() -> tuple[torch.nn.Module, Cases]:
    """The original transformer: post-LN, sinusoids, embeddings times sqrt(d_model), ReLU, one table for everything."""
    sizes = {f"{stack}_{name}": n for stack in ("encoder", "decoder") for name, n in SHARED_SIZES.items()}
    config = transformers.MarianConfig(
        vocab_size=VOCAB,
        d_model=16,
        max_position_embeddings=LENGTH,
        activation_function="relu",
        scale_embedding=True,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
        **sizes,
    )
    return transformers.MarianMTModel(config), pair_cases()


SHARED_SIZES = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
FIXTURES: dict[str, Callable[[], tuple[torch.nn.Module, Cases]]] = {
    "gpt2": gpt2,
    "llama": llama,
    "mistral": mistral,
    "qwen3": qwen3,
    "bert": bert,
    "t5": t5,
    "marian": marian,
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
            output = model(**{key: torch.from_numpy(value) for key, value in arguments.items()})
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
