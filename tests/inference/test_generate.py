"""Cached generation says what the full forward pass would say, and what eval.py makes of it."""

from __future__ import annotations

import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from tests.tiny import LENGTH, VOCAB, tiny, tokens
from transformer.data.batch import Layout
from transformer.data.dataset import Text
from transformer.data.vocabularies import Bytes
from transformer.errors import ConfigError, UserError
from transformer.inference.checks import CHECKS, Subject
from transformer.inference.generate import generate
from transformer.inference.show import show
from transformer.model import build
from transformer.training.run import LoadedRun
from transformer.training.step import Program


@pytest.fixture(scope="module")
def model():
    return build(tiny())


def greedy_by_full_passes(model, prompt: np.ndarray, count: int) -> np.ndarray:
    """The whole text again for every token, without a cache."""
    forward = jax.jit(lambda text: model(text))
    text = np.zeros((len(prompt), prompt.shape[1] + count), np.int32)
    text[:, : prompt.shape[1]] = prompt
    for place in range(prompt.shape[1], text.shape[1]):
        text[:, place] = np.asarray(forward(text))[:, place - 1].argmax(axis=-1)
    return text


# --- generate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["rope", "learned", "none"])
def test_greedy_is_the_argmax_of_the_full_pass(position):
    # Large untied weights, so that its greedy text depends on everything before and does not settle on one token.
    wild = {"model.embedding.tie": False, "model.init.std": 1.0, "data.sequence_length": 2 * LENGTH}
    model = build(tiny({"model.position.kind": position, **wild}))
    prompt = tokens(batch=3, length=5)
    out = generate(model, prompt, 11)
    np.testing.assert_array_equal(out, greedy_by_full_passes(model, prompt, 11))
    assert out.dtype == np.int32
    assert len(np.unique(out[:, 5:])) > 3


def test_greedy_ignores_the_seed(model):
    np.testing.assert_array_equal(generate(model, tokens(), 6, seed=0), generate(model, tokens(), 6, seed=1))


def test_a_seed_decides_the_sample(model):
    samples = [generate(model, tokens(), 20, temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(samples[0], samples[1])
    assert (samples[0] != samples[2]).any()
    for sample in samples:
        np.testing.assert_array_equal(sample[:, :LENGTH], tokens())
        assert sample.min() >= 0 and sample.max() < VOCAB


def test_low_temperature_approaches_greedy(model):
    np.testing.assert_array_equal(generate(model, tokens(), 6, temperature=1e-4), generate(model, tokens(), 6))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_samples_follow_the_softmax_of_logits_over_temperature(model, temperature):
    rows = 4000
    drawn = generate(model, np.repeat(tokens(batch=1), rows, axis=0), 1, temperature, seed=3)[:, -1]
    expected = np.asarray(jax.nn.softmax(model(tokens(batch=1))[0, -1] / temperature))
    observed = np.bincount(drawn, minlength=VOCAB) / rows
    noise = np.sqrt(expected * (1 - expected) / rows)
    assert (np.abs(observed - expected) < 5 * noise + 1e-3).all()
    other = np.asarray(jax.nn.softmax(model(tokens(batch=1))[0, -1]))
    assert np.abs(observed - other).max() > 5 * noise.max()  # at temperature 1 it would look different


def test_rows_of_a_batch_do_not_see_each_other(model):
    both = generate(model, tokens(batch=2), 6)
    np.testing.assert_array_equal(both[1:], generate(model, tokens(batch=2)[1:], 6))


def test_nothing_to_add(model):
    np.testing.assert_array_equal(generate(model, tokens(), 0), tokens())


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(UserError, match="prompt is empty"):
        generate(model, np.zeros((1, 0), np.int32), 3)


def test_learned_positions_are_a_limit():
    model = build(tiny({"model.position.kind": "learned"}))
    prompt = tokens(batch=1, length=3)
    assert generate(model, prompt, LENGTH - 3).shape == (1, LENGTH)
    with pytest.raises(UserError, match=rf"need {LENGTH + 1} positions, but the model knows {LENGTH}"):
        generate(model, prompt, LENGTH - 2)


def test_a_model_that_sees_the_future_is_refused():
    model = build(tiny({"model.attention.mask": "none"}))
    with pytest.raises(UserError, match=r"model\.attention\.mask=none"):
        generate(model, tokens(), 2)


# --- the checks of eval.py ---------------------------------------------------------------------------------------


def subject(overrides: dict | None = None) -> Subject:
    """An untrained model over a text of ones, twos and threes."""
    config = tiny({"model.vocab_size": 260, "decode.max_new_tokens": 7, **(overrides or {})})
    vocabulary = Bytes()
    program = Program(config, vocabulary.size, vocabulary.bytes_per_token)
    state = program.init(0)
    text = vocabulary.encode("123" * 40)
    run = LoadedRun(program.model(state), config, vocabulary, program, state, step=0)
    return Subject(
        run,
        Text({"train": text, "validation": text[:101]}, vocabulary, "f" * 12, "x", "x", Layout(LENGTH)),
        "validation",
    )


def test_loss_is_the_mean_over_every_predicted_token():
    one = subject()
    measured = CHECKS.build("loss", one)
    text = one.dataset.splits["validation"].astype(np.int32)
    nll = []
    for start in range(0, 100, LENGTH):
        window = text[start : start + LENGTH + 1]
        logits = jax.nn.log_softmax(one.run.model(window[None, :-1])[0])
        nll += [-float(logits[i, token]) for i, token in enumerate(window[1:])]
    assert measured["tokens"] == len(nll) == 100
    assert measured["loss"] == pytest.approx(np.mean(nll), rel=1e-5)
    assert measured["bits_per_byte"] == pytest.approx(np.mean(nll) / np.log(2), rel=1e-5)
    assert measured["unigram_entropy"] == pytest.approx(np.log(3), rel=1e-3)
    assert measured["bigram_entropy"] == pytest.approx(0, abs=1e-3)


def test_positions_cover_the_window():
    measured = CHECKS.build("position", subject())
    assert list(measured) == [f"{i}-{i}" for i in range(LENGTH)]
    assert all(value > 0 for value in measured.values())


def test_the_prompt_is_continued():
    measured = CHECKS.build("generate", subject({"decode.prompt": "12"}))
    assert measured["prompt"] == "12"
    assert measured["new_tokens"] == 7
    one = subject({"decode.prompt": "12"}).run
    continued = generate(one.model, one.vocabulary.encode("12")[None], 7)
    assert measured["greedy"] == one.vocabulary.decode(continued[0, 2:])


@pytest.mark.parametrize("prompt", ["", "12"])
def test_learned_positions_shorten_the_answer(prompt):
    measured = CHECKS.build("generate", subject({"model.position.kind": "learned", "decode.prompt": prompt}))
    assert len(measured["prompt"]) + measured["new_tokens"] == LENGTH
    assert measured["new_tokens"] > 0


def test_a_prompt_that_leaves_no_room_is_refused():
    with pytest.raises(UserError, match=rf"decode\.prompt has {LENGTH} tokens.*{LENGTH} positions"):
        CHECKS.build("generate", subject({"model.position.kind": "learned", "decode.prompt": "1" * LENGTH}))


def test_generation_can_be_turned_off():
    measured = CHECKS.build("generate", subject({"decode.max_new_tokens": 0}))
    assert measured["greedy"] == measured["sampled"] == ""


def test_an_unknown_check_is_refused():
    with pytest.raises(ConfigError, match=r"--checks='los' is not one of: loss.*Did you mean \"loss\""):
        CHECKS["los"]


def test_results_are_json_and_shown_as_they_are():
    """Text of a model may look like markup; it must neither vanish nor style anything."""
    out = io.StringIO()
    result = {"greedy": "[bold]a[/bold] [/]", "loss": 2.5, "tokens": 12345, "missing": None}
    json.dumps(result, allow_nan=False)
    show("title", result, Console(file=out, width=80))
    shown = out.getvalue()
    for expected in ("[bold]a[/bold] [/]", "2.5000", "12,345", "missing"):
        assert expected in shown
