"""Named models have the number of parameters that their authors state, and the sizes of their checkpoints."""

from __future__ import annotations

import pytest

from transformer.analysis import accounting
from transformer.analysis.presets import PRESETS, sized
from transformer.config import replace
from transformer.errors import ConfigError
from transformer.schema import Config

# Counted in the released checkpoints, to the last parameter, and where each count is published.
EXACT = {
    # github.com/keras-team/keras-hub, keras_hub/src/models/gpt2/gpt2_presets.py
    "gpt2_124m": 124_439_808,
    "gpt2_355m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1558m": 1_557_611_200,
    # The same, llama/llama_presets.py and llama3/llama3_presets.py
    "llama2_7b": 6_738_415_616,
    "llama3_8b": 8_030_261_248,
    # github.com/togethercomputer/together-python, model_param_count (2023); the files at Hugging Face hold 64 rotary
    # frequencies a layer beside them
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    # The metadata of the files of meta-llama/Llama-3.1-70B at Hugging Face
    "llama3_70b": 70_553_706_496,
    # BertForMaskedLM of Hugging Face transformers: with the head for masked tokens, without the pooler
    "bert_base": 109_514_298,
    "bert_large": 335_174_458,
    # T5 presets of KerasNLP (2023)
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    # In one public script only
    "t5_11b": 11_307_321_344,
}


def parameters(config: Config) -> int:
    return sum(accounting.declared_components(config).values())


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_published(name):
    preset = PRESETS[name]
    counted = parameters(preset.config())
    assert counted == pytest.approx(preset.published, rel=preset.within)
    assert preset.source and (preset.within == 0.01 or name == "transformer_base")
    if name in EXACT:
        assert counted == EXACT[name]


@pytest.mark.parametrize(("name", "published"), [("bert_base", 109_482_240), ("bert_large", 335_141_888)])
def test_bert_with_its_pooler_and_without_a_head(name, published):
    """As keras_hub/src/models/bert/bert_presets.py counts; the pooler has the shape of a head for d_model labels."""
    config = PRESETS[name].config()
    pooler = {"model.head.kind": "classify", "model.head.num_labels": config.model.d_model}
    assert parameters(replace(config, pooler)) == published


def test_a_size_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"no size 'gpt2_125m'; there are: tiny, gpt2_124m\. Did you mean"):
        sized("gpt2_125m", {"tiny": {}}, ("gpt2_124m",), {})


def test_a_named_size_is_the_preset_with_a_recipe():
    made = sized("gpt2_124m", {"tiny": {}}, ("gpt2_124m",), {"train.steps": 7})
    assert made.model.d_model == 768 and made.train.steps == 7
    assert sized("tiny", {"tiny": {"model.d_model": 64}}, (), {"train.steps": 7}).train.steps != 7
