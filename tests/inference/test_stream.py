"""Reading a long text through a cache."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.tiny import LENGTH, tiny, tokens
from transformer.errors import UserError
from transformer.inference.stream import streamed_losses
from transformer.model import build
from transformer.model.cache import Layout, SinkWindow, Sliding

TEXT = tokens(2, 3 * LENGTH)


def losses(logits, text: np.ndarray) -> np.ndarray:
    log_p = np.asarray(jax.nn.log_softmax(logits))
    return -np.take_along_axis(log_p[:, :-1], text[:, 1:, None], axis=-1)[..., 0]


def test_a_full_cache_gives_the_losses_of_the_full_pass():
    model = build(tiny())
    full = losses(model(TEXT), TEXT)
    np.testing.assert_allclose(streamed_losses(model, TEXT, Layout(3 * LENGTH)), full, atol=1e-4)
    assert not np.allclose(streamed_losses(model, TEXT, Sliding(LENGTH)), full, atol=1e-3)


def test_a_sliding_cache_gives_the_losses_of_the_window():
    windowed = build(tiny({"model.attention.window": 5}))
    streamed = streamed_losses(build(tiny()), TEXT, Sliding(5))
    np.testing.assert_allclose(streamed, losses(windowed(TEXT), TEXT), atol=1e-4)


def test_sinks_stream_on_for_ever():
    model = build(tiny({"model.num_layers": 1}))
    streamed = streamed_losses(model, TEXT, SinkWindow(LENGTH, 2))
    kept = np.concatenate([TEXT[:, :2], TEXT[:, -LENGTH + 1 :]], axis=1)
    np.testing.assert_allclose(streamed[:, -1], losses(model(kept), kept)[:, -1], atol=1e-4)


@pytest.mark.parametrize(
    ("text", "layout", "position", "message"),
    [
        (TEXT[:, :1], Sliding(4), "rope", "has 1 tokens: a loss needs"),
        (TEXT, Layout(LENGTH), "rope", r"has 24 tokens and the full cache room for 8; use decode\.cache=sink_window"),
        (TEXT, Sliding(4), "learned", "has 24 tokens, but the model knows 8 positions"),
    ],
)
def test_what_cannot_be_streamed_is_refused(text, layout, position, message):
    with pytest.raises(UserError, match=message):
        streamed_losses(build(tiny({"model.position.kind": position})), text, layout)
