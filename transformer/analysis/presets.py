"""Named models as settings of the same switches, with the number of parameters their authors state.

For accounting, and as the sizes of `configs/gpt2.py` and its like. A preset holds what decides the function a
model computes; data, optimizer and length of training belong to a config.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from transformer.config import apply_overrides, default_config, resolve
from transformer.errors import ConfigError, did_you_mean
from transformer.schema import Config


@dataclasses.dataclass(frozen=True)
class Preset:
    """One named model.

    Attributes:
      overrides: its settings, by dotted name.
      published: parameters as stated, rounded as stated.
      source: where.
      within: how far ours may lie from it, as a share.
    """

    overrides: dict[str, Any]
    published: float
    source: str
    within: float = 0.01

    def config(self) -> Config:
        """The settings on top of the defaults."""
        return resolve(apply_overrides(default_config(), self.overrides))


# A size and a length of training for two cores and some minutes; a config adds a style.
TINY_RUN: dict[str, Any] = {
    "model.num_layers": 4,
    "model.d_model": 128,
    "model.attention.num_heads": 4,
    "data.sequence_length": 128,
    "train.batch_size": 16,
    "train.steps": 500,
    "train.eval_every": 100,
    "train.checkpoint_every": 250,
}


def sized(size: str, own: dict[str, dict[str, Any]], presets: tuple[str, ...], recipe: dict[str, Any]) -> Any:
    """The ConfigDict of one size: of `own` overrides by name, or a preset with a recipe for its training.

    Raises:
      ConfigError: a size that is neither.
    """
    sizes = {**own, **{name: {**PRESETS[name].overrides, **recipe} for name in presets}}
    if size not in sizes:
        raise ConfigError(f"There is no size {size!r}; there are: {', '.join(sizes)}.{did_you_mean(size, sizes)}")
    return apply_overrides(default_config(), sizes[size])


GPT2_STYLE: dict[str, Any] = {
    "model.position.kind": "learned",
    "model.norm.kind": "layernorm",
    "model.norm.bias": True,
    "model.norm.epsilon": 1e-5,
    "model.attention.bias": True,
    "model.ffn.kind": "gelu_tanh",
    "model.ffn.bias": True,
    "model.embedding.tie": True,
    "model.init.scheme": "gpt2",
}
LLAMA_STYLE: dict[str, Any] = {
    "model.position.kind": "rope",
    "model.norm.kind": "rmsnorm",
    "model.norm.epsilon": 1e-5,
    "model.ffn.kind": "swiglu",
    "model.embedding.tie": False,
}
BERT_STYLE: dict[str, Any] = {
    "model.family": "encoder",
    "model.position.kind": "learned",
    "model.norm.kind": "layernorm",
    "model.norm.bias": True,
    "model.norm.epsilon": 1e-12,
    "model.norm.placement": "post",
    "model.norm.embedding": True,
    "model.attention.bias": True,
    "model.ffn.kind": "gelu",
    "model.ffn.bias": True,
    "model.embedding.tie": True,
    "model.embedding.token_types": 2,
    "model.head.kind": "mlm",
    "model.init.scheme": "plain",
}
T5_STYLE: dict[str, Any] = {
    "model.family": "encoder_decoder",
    "model.position.kind": "t5",
    "model.norm.kind": "rmsnorm",
    "model.norm.epsilon": 1e-6,
    "model.attention.scale": "none",
    "model.ffn.kind": "relu",
    "model.embedding.tie": True,
    "model.embedding.logit_scale": 0.0,
}
VASWANI_STYLE: dict[str, Any] = {
    "model.family": "encoder_decoder",
    "model.position.kind": "sinusoidal",
    "model.norm.kind": "layernorm",
    "model.norm.bias": True,
    "model.norm.placement": "post",
    "model.ffn.kind": "relu",
    "model.ffn.bias": True,
    "model.embedding.tie": True,
    "model.embedding.scale": 0.0,
}


def _gpt(layers: int, width: int, heads: int, length: int = 1024) -> dict[str, Any]:
    return {
        **GPT2_STYLE,
        "model.num_layers": layers,
        "model.d_model": width,
        "model.attention.num_heads": heads,
        "model.vocab_size": 50257,
        "data.sequence_length": length,
    }


def _llama2(layers: int, width: int, heads: int, hidden: int, kv_heads: int = 0) -> dict[str, Any]:
    return {
        **LLAMA_STYLE,
        "model.num_layers": layers,
        "model.d_model": width,
        "model.attention.num_heads": heads,
        "model.attention.num_kv_heads": kv_heads,
        "model.ffn.ratio": hidden / width,
        "model.vocab_size": 32000,
        "data.sequence_length": 4096,
    }


def _llama3(layers: int, width: int, heads: int, hidden: int) -> dict[str, Any]:
    return {
        **_llama2(layers, width, heads, hidden, kv_heads=8),
        "model.position.rope_base": 500_000.0,
        "model.vocab_size": 128256,
        "data.sequence_length": 8192,
    }


def _bert(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        **BERT_STYLE,
        "model.num_layers": layers,
        "model.d_model": width,
        "model.attention.num_heads": heads,
        "model.vocab_size": 30522,
        "data.sequence_length": 512,
    }


def _t5(layers: int, width: int, heads: int, head_dim: int, hidden: int) -> dict[str, Any]:
    return {
        **T5_STYLE,
        "model.num_layers": layers,
        "model.d_model": width,
        "model.attention.num_heads": heads,
        "model.attention.head_dim": head_dim,
        "model.ffn.ratio": hidden / width,
        "model.vocab_size": 32128,
        "data.sequence_length": 512,
    }


def _vaswani(width: int, heads: int) -> dict[str, Any]:
    return {
        **VASWANI_STYLE,
        "model.num_layers": 6,
        "model.d_model": width,
        "model.attention.num_heads": heads,
        "model.vocab_size": 37000,
    }


def _counted(by: str, rounded: str = "") -> str:
    return f"the released checkpoint, counted in {by}" + (f"; {rounded}" if rounded else "")


GPT2_CARD = "model card of github.com/openai/gpt-2, November 2019; Radford et al. 2019 count 117M to 1542M"
KERAS_HUB = "github.com/keras-team/keras-hub, keras_hub/src/models/{0}/{0}_presets.py"
TOGETHER = "github.com/togethercomputer/together-python, model_param_count (2023)"
T5_README = "its authors round to {}, README of github.com/google-research/text-to-text-transfer-transformer"
KERAS_NLP = "the T5 presets of KerasNLP (2023)"

PRESETS: dict[str, Preset] = {
    "gpt2_124m": Preset(_gpt(12, 768, 12), 124e6, GPT2_CARD),
    "gpt2_355m": Preset(_gpt(24, 1024, 16), 355e6, GPT2_CARD),
    "gpt2_774m": Preset(_gpt(36, 1280, 20), 774e6, GPT2_CARD),
    "gpt2_1558m": Preset(_gpt(48, 1600, 25), 1558e6, "name of the checkpoint; its model card rounds to 1.5 billion"),
    "gpt3_175b": Preset(_gpt(96, 12288, 96, length=2048), 175.0e9, "Brown et al. 2020, table 2.1"),
    "llama2_7b": Preset(_llama2(32, 4096, 32, 11008), 6.74e9, _counted(KERAS_HUB.format("llama"))),
    "llama2_13b": Preset(_llama2(40, 5120, 40, 13824), 13.0e9, _counted(TOGETHER)),
    "llama2_70b": Preset(_llama2(80, 8192, 64, 28672, kv_heads=8), 69.0e9, _counted(TOGETHER)),
    "llama3_8b": Preset(_llama3(32, 4096, 32, 14336), 8.03e9, _counted(KERAS_HUB.format("llama3"))),
    "llama3_70b": Preset(_llama3(80, 8192, 64, 28672), 70.6e9, _counted("the metadata of its files, Hugging Face")),
    "bert_base": Preset(_bert(12, 768, 12), 110e6, "Devlin et al. 2019, section 3; README of google-research/bert"),
    "bert_large": Preset(
        _bert(24, 1024, 16), 336e6, "list of models of Hugging Face transformers 4.4; the paper rounds to 340M"
    ),
    "t5_small": Preset(_t5(6, 512, 8, 64, 2048), 60.5e6, _counted(KERAS_NLP, T5_README.format("60M"))),
    "t5_base": Preset(_t5(12, 768, 12, 64, 3072), 223e6, _counted(KERAS_NLP, T5_README.format("220M"))),
    "t5_large": Preset(_t5(24, 1024, 16, 64, 4096), 738e6, _counted(KERAS_NLP, T5_README.format("770M"))),
    "t5_3b": Preset(_t5(24, 1024, 32, 128, 16384), 2.85e9, _counted(KERAS_NLP, T5_README.format("3B"))),
    # No list of a library has it: this count was found in one public script only.
    "t5_11b": Preset(_t5(24, 1024, 128, 128, 65536), 11.3e9, _counted("a script", T5_README.format("11B"))),
    # The paper's vocabulary is "about 37000", and it does not say what it counts: ours has 3% less than its 65M.
    "transformer_base": Preset(_vaswani(512, 8), 65e6, "Vaswani et al. 2017, table 3", within=0.035),
    "transformer_big": Preset(_vaswani(1024, 16), 213e6, "Vaswani et al. 2017, table 3"),
}
