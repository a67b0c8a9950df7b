"""What eval.py makes of a run."""

from __future__ import annotations

import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from tests.tiny import LENGTH, tiny
from transformer.config import replace
from transformer.data.batch import Layout
from transformer.data.dataset import Text
from transformer.data.vocabularies import Bytes
from transformer.errors import ConfigError, UserError
from transformer.inference import samples
from transformer.inference.checks import CHECKS, Subject
from transformer.inference.generate import generate
from transformer.inference.sampling import Beam
from transformer.inference.show import show
from transformer.model.cache import SinkWindow
from transformer.training.evaluation import Sums
from transformer.training.run import LoadedRun
from transformer.training.step import EvalSums, Program


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


def test_positions_without_targets_are_no_perfect_loss():
    one, zeros = subject(), np.zeros(16)
    weight_T = np.repeat([0.0, 1.0, 3.0], [9, 1, 6])
    sums = EvalSums(*[zeros] * 8)._replace(nll_T=weight_T * np.arange(16), weight_T=weight_T)
    one.__dict__["sums"] = Sums(1, sums)
    expected = {"8-9": 9.0, "10-11": 10.5, "12-13": 12.5, "14-15": 14.5}
    assert CHECKS.build("position", one) == expected


@pytest.mark.parametrize("kind", ["clm", "prefix"])
def test_a_prefix_is_read_as_it_was_in_training(kind, monkeypatch):
    """A prefix decoder may be trained as a causal one."""
    told = []
    monkeypatch.setattr(samples, "_continued", lambda *arguments, prefix, **named: told.append(prefix) or {})
    CHECKS.build("generate", subject({"model.family": "prefix_decoder", "objective.kind": kind}))
    assert told == [kind == "prefix"]


def test_another_way_to_decode_needs_no_word_about_the_parameters_of_the_first():
    beams = tiny({"decode.sampler": "beam", "decode.beams": 8})
    assert replace(beams, {"decode.sampler": "greedy"}, yielding="decode").decode.sampler == "greedy"
    with pytest.raises(ConfigError, match=r"decode\.beams=8 has no effect"):
        replace(beams, {"decode.sampler": "greedy"})
    with pytest.raises(ConfigError, match=r"decode\.beams=3 has no effect"):
        replace(beams, {"decode.sampler": "greedy", "decode.beams": 3}, yielding="decode")


def test_the_prompt_is_continued():
    measured = CHECKS.build("generate", subject({"decode.prompt": "12"}))
    assert measured["prompt"] == "12"
    assert measured["new_tokens"] == 7
    one = subject({"decode.prompt": "12"}).run
    continued = generate(one.model, [one.vocabulary.encode("12")], 7)
    assert measured["greedy"] == one.vocabulary.decode(continued.new[0])
    assert measured["sample"] != measured["greedy"]


def test_sampler_and_cache_come_from_the_config():
    overrides = {"decode.prompt": "12", "decode.sampler": "beam", "decode.beams": 3, "decode.length_penalty": 0.0}
    overrides |= {"decode.cache": "sink_window", "decode.cache_sinks": 1, "decode.cache_window": 2}
    one = subject(overrides)
    measured = CHECKS.build("generate", one)
    assert set(measured) == {"prompt", "new_tokens", "greedy", "beam", "tokens_per_second"}
    expected = generate(
        one.run.model, [one.run.vocabulary.encode("12")], 7, Beam(3, length_penalty=0.0), cache=SinkWindow(3, 1)
    )
    assert measured["beam"] == one.run.vocabulary.decode(expected.new[0])


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
    assert measured["new_tokens"] == 0 and "greedy" not in measured


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
