"""Named models have the number of parameters that their authors state, and the sizes of their checkpoints."""

from __future__ import annotations

import pytest

from transformer.analysis import accounting
from transformer.analysis.presets import PRESETS, sized
from transformer.errors import ConfigError

# Counted in the released checkpoints, to the last parameter.
EXACT = {
    "gpt2_124m": 124_439_808,
    "gpt2_355m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1558m": 1_557_611_200,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "bert_base": 109_514_298,  # with the head for masked tokens, without the pooler
    "bert_large": 335_174_458,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_published(name):
    preset = PRESETS[name]
    counted = sum(accounting.declared_components(preset.config()).values())
    assert counted == pytest.approx(preset.published, rel=preset.within)
    assert preset.source and (preset.within == 0.01 or name == "transformer_base")
    if name in EXACT:
        assert counted == EXACT[name]


def test_a_size_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"no size 'gpt2_125m'; there are: tiny, gpt2_124m\. Did you mean"):
        sized("gpt2_125m", {"tiny": {}}, ("gpt2_124m",), {})


def test_a_named_size_is_the_preset_with_a_recipe():
    made = sized("gpt2_124m", {"tiny": {}}, ("gpt2_124m",), {"train.steps": 7})
    assert made.model.d_model == 768 and made.train.steps == 7
    assert sized("tiny", {"tiny": {"model.d_model": 64}}, (), {"train.steps": 7}).train.steps != 7
