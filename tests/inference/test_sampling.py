"""Samplers: the distribution that is drawn from, and the order of the cuts."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.inference.texts import wild
from tests.tiny import VOCAB, tiny, tokens
from transformer.errors import ConfigError
from transformer.inference.generate import generate
from transformer.inference.sampling import SAMPLERS, Beam, Greedy, Sample, probabilities
from transformer.model import build

P = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
LOGITS = np.log(P)[None]


def kept(sample: Sample) -> list[int]:
    return np.flatnonzero(np.asarray(probabilities(LOGITS, sample))[0]).tolist()


def test_each_step_reads_what_the_one_before_left():
    assert kept(Sample(top_p=0.75)) == [0, 1, 2]
    assert kept(Sample(top_k=3, top_p=0.75)) == [0, 1]  # of the three that remain, two reach 0.75
    assert kept(Sample(temperature=0.5, top_p=0.75)) == [0, 1]  # sharpened first
    assert kept(Sample(min_p=0.3)) == [0, 1, 2]
    assert kept(Sample(temperature=0.5, min_p=0.3)) == [0, 1]
    assert kept(Sample(temperature=4.0, top_k=4, top_p=0.9, min_p=0.7)) == [0, 1, 2, 3]
    np.testing.assert_allclose(probabilities(LOGITS, Sample(top_k=2))[0], [4 / 7, 3 / 7, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(probabilities(LOGITS, Sample(top_p=1e-9))[0], [1, 0, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    "sample",
    [Sample(0.5), Sample(2.0), Sample(1.2, top_k=4), Sample(1.5, top_p=0.8), Sample(min_p=0.2)],
    ids=str,
)
def test_draws_follow_the_distribution(sample):
    model, rows = build(tiny()), 4000
    prompt = tokens(batch=1)
    drawn = generate(model, np.repeat(prompt, rows, axis=0), 1, sample, seed=3).new_BN[:, 0]
    expected = np.asarray(probabilities(model(prompt)[:, -1], sample))[0]
    observed = np.bincount(drawn, minlength=VOCAB) / rows

    def as_drawn_from(p: np.ndarray) -> bool:
        return bool((np.abs(observed - p) < 5 * np.sqrt(p * (1 - p) / rows) + 1e-3).all())

    assert as_drawn_from(expected)
    assert not as_drawn_from(np.asarray(jax.nn.softmax(model(prompt)[0, -1])))


def test_temperature_zero_and_one_candidate_are_greedy():
    model = build(wild())
    greedy = generate(model, tokens(), 12).new_BN
    for sample in (Sample(0.0), Sample(1.5, top_k=1), Sample(1e-4), Sample(top_p=1e-9), Sample(min_p=1.0)):
        np.testing.assert_array_equal(generate(model, tokens(), 12, sample, seed=7).new_BN, greedy)
    assert (generate(model, tokens(), 12, Sample(1.5), seed=7).new_BN != greedy).any()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, Sample(0.8)),
        ({"decode.top_k": 5, "decode.top_p": 0.9, "decode.min_p": 0.1}, Sample(0.8, 5, 0.9, 0.1)),
        ({"decode.sampler": "greedy"}, Greedy()),
        ({"decode.sampler": "beam", "decode.beams": 2, "decode.length_penalty": 0.5}, Beam(2, 0.5)),
    ],
)
def test_a_config_names_a_sampler(overrides, expected):
    decode = tiny(overrides).decode
    assert SAMPLERS.build(decode.sampler, decode) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"decode.temperature": -1.0}, r"decode\.sampler=sample: decode\.temperature=-1.0 must be"),
        ({"decode.top_k": -1}, r"decode\.top_k=-1 leaves no token"),
        ({"decode.top_p": 0.0}, r"decode\.top_p=0.0 must be above 0"),
        ({"decode.min_p": 2.0}, r"decode\.min_p=2.0 must be"),
        ({"decode.sampler": "beam", "decode.beams": 0}, r"decode\.beams=0 follows no text"),
        ({"decode.sampler": "greedy", "decode.temperature": 0.5}, "has no effect: only decode.sampler=sample"),
        ({"decode.cache_capacity": -1}, r"decode\.cache=full: decode\.cache_capacity=-1"),
        ({"decode.cache": "sliding", "decode.cache_window": -1}, r"decode\.cache_window=-1"),
        ({"decode.cache": "sink_window", "decode.cache_sinks": 0}, r"cache_sinks=0 must be at least 1"),
        ({"decode.cache": "sink_window", "decode.cache_sinks": 8}, "leaves no window within data.sequence_length=8"),
        ({"decode.cache": "sink_window", "model.attention.window": 5}, r"model\.attention\.window=5 hides"),
    ],
)
def test_impossible_settings_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny(overrides)
