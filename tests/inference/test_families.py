"""Every family that continues text goes through the same `generate`."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.inference.texts import ragged, wild
from tests.tiny import tokens
from transformer.errors import UserError
from transformer.inference.generate import generate
from transformer.inference.sampling import Beam
from transformer.model import build
from transformer.model.cache import Sliding

SOURCE = tokens(4, 6, seed=9)
REAL = (np.arange(6) < np.array([[6], [3], [1], [5]])).astype(np.int32)
NEW = 6


@pytest.fixture(scope="module")
def seq2seq():
    return build(wild({"model.family": "encoder_decoder"}))


@pytest.fixture(scope="module")
def prefix_lm():
    return build(wild({"model.family": "prefix_decoder"}))


def check_greedy(model, out, **arguments) -> None:
    """Each row's tokens are those that one full pass over prompt and answer prefers."""
    forward = jax.jit(lambda text, arguments: model(text, **arguments))
    for row, (prompt, new) in enumerate(zip(out.prompts, out.new, strict=True)):
        text = np.zeros((1, 9 + NEW), np.int32)
        text[0, : len(prompt) + len(new)] = [*prompt, *new]
        logits = forward(text, {name: value[row : row + 1] for name, value in arguments.items()})[0]
        first = len(prompt) - 1
        np.testing.assert_array_equal(new, np.asarray(logits)[first : first + len(new)].argmax(axis=-1))


def test_an_encoder_decoder_continues_from_its_source(seq2seq):
    source = {"source_BS": SOURCE, "source_segments_BS": REAL}
    out = generate(seq2seq, ragged(), NEW, **source)
    check_greedy(seq2seq, out, **source)
    assert (out.new_BN != generate(seq2seq, ragged(), NEW, source_BS=(SOURCE + 1) % 11).new_BN).any()
    with pytest.raises(AssertionError):
        check_greedy(seq2seq, out, source_BS=SOURCE[::-1], source_segments_BS=REAL[::-1])
    np.testing.assert_array_equal(generate(seq2seq, ragged(), NEW, Beam(1), **source).new_BN, out.new_BN)
    beams = generate(seq2seq, ragged(), NEW, Beam(3), **source)
    for row, prompt in enumerate(ragged()):
        own = {name: value[row : row + 1] for name, value in source.items()}
        np.testing.assert_array_equal(generate(seq2seq, [prompt], NEW, Beam(3), **own).new[0], beams.new[row])


def test_a_prefix_decoder_reads_its_prompt_in_both_directions(prefix_lm):
    lengths = np.array([len(prompt) for prompt in ragged()], np.int32)
    out = generate(prefix_lm, ragged(), NEW, prefix=True)
    check_greedy(prefix_lm, out, prefix_length_B=lengths)
    with pytest.raises(AssertionError):
        check_greedy(prefix_lm, out)
    check_greedy(prefix_lm, generate(prefix_lm, ragged(), NEW))


def test_what_a_family_lacks_is_named(seq2seq, prefix_lm):
    with pytest.raises(UserError, match=r"has no encoder; use model\.family=encoder_decoder"):
        generate(prefix_lm, [[1]], NEW, source_BS=SOURCE)
    with pytest.raises(UserError, match="4 sources were given for 1 prompts"):
        generate(seq2seq, [[1]], NEW, source_BS=SOURCE)
    with pytest.raises(UserError, match="Source row 1 is padding only"):
        generate(seq2seq, [[1], [2]], NEW, source_BS=SOURCE[:2], source_segments_BS=REAL[:2] * [[1], [0]])
    with pytest.raises(UserError, match="needs either source_BS"):
        generate(seq2seq, [[1]], NEW)
    for model, cache in ((seq2seq, None), (prefix_lm, Sliding(3))):
        with pytest.raises(UserError, match=r"needs model\.family=prefix_decoder and decode\.cache=full"):
            generate(model, [[1]], NEW, prefix=True, cache=cache)
