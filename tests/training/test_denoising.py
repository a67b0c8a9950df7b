"""What each objective shows the model and asks of it, and that impossible combinations are refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import tiny
from transformer.data.batch import Batch
from transformer.data.vocabularies import EOS, MASK, Bytes
from transformer.errors import ConfigError
from transformer.training.objectives import OBJECTIVES, Objective, layout_of, objective_name, shifted_right
from transformer.training.step import Program

ROWS, LENGTH = 6, 16
FAMILY = {
    "clm": "decoder",
    "in_context": "decoder",
    "mlm": "encoder",
    "next_sentence": "encoder",
    "classify": "encoder",
    "tag": "encoder",
    "prefix": "prefix_decoder",
    "seq2seq": "encoder_decoder",
    "span": "encoder_decoder",
    "denoise": "encoder_decoder",
}
HEAD = {"next_sentence": "classify", "classify": "classify", "tag": "tag"}
TEXT = np.random.default_rng(0).integers(97, 123, (ROWS, LENGTH + 1)).astype(np.int32)


def overrides(kind: str) -> dict[str, Any]:
    more = {"model.family": FAMILY[kind], "model.head.kind": HEAD.get(kind, "lm"), "objective.kind": kind}
    return {"model.vocab_size": 0, "data.sequence_length": LENGTH, "train.batch_size": ROWS, **more}


def made(kind: str, **changes: Any) -> Objective:
    config = tiny({**overrides(kind), **{f"objective.{k}": v for k, v in changes.items()}})
    return OBJECTIVES.build(kind, config, Bytes().with_specials(layout_of(config).specials))


def text(objective: Objective) -> Batch:
    layout = objective.layout(objective.config)
    return Batch(jnp.asarray(TEXT[:, : layout.length + layout.overlap]))


def prepared(objective: Objective, key: int = 0, **parts: Any) -> Batch:
    batch = objective.prepare(text(objective).replace(**parts), jax.random.key(key))
    return jax.tree.map(np.asarray, batch)


def test_every_objective_is_listed_here():
    assert set(FAMILY) == set(OBJECTIVES) - {"auto"}


@pytest.mark.parametrize("kind", ["mlm", "next_sentence", "prefix", "span", "denoise"])
def test_corruption_is_a_function_of_the_key_and_of_the_row(kind):
    objective = made(kind)
    first, again, *others = (prepared(objective, key) for key in (0, 0, 1, 2, 3))
    same = jax.tree.map(np.array_equal, first, again)
    assert all(jax.tree.leaves(same))
    differ = [not all(jax.tree.leaves(jax.tree.map(np.array_equal, first, other))) for other in others]
    assert all(differ) or (kind == "next_sentence" and any(differ))  # which draws one bit for two rows
    part = objective.prepare(text(objective).take(slice(2, 4)), jax.random.key(0), 2)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, part, first.take(slice(2, 4)))))


# --- Masked tokens -----------------------------------------------------------------------------------------------


def test_masked_tokens_are_the_only_targets():
    batch = prepared(made("mlm", mask_rate=0.25))
    assert batch.labels.tolist() == TEXT[:, :LENGTH].tolist()
    assert (batch.weights_BL.sum(1) == 4).all()
    assert (batch.tokens_BL == batch.labels)[batch.weights_BL == 0].all()
    assert (batch.tokens_BL == MASK).sum() > ROWS
    all_mask = prepared(made("mlm", mask_replacement="mask"))
    assert (all_mask.tokens_BL == MASK).tolist() == (all_mask.weights_BL == 1).tolist()


def test_padding_and_special_tokens_are_never_masked():
    tokens, segments = TEXT[:, :LENGTH].copy(), np.ones((ROWS, LENGTH), np.int32)
    tokens[:, 3], segments[:, 10:], tokens[:, 10:] = EOS, 0, 65
    batch = prepared(made("mlm", mask_rate=1.0), tokens_BL=tokens, segments_BL=segments)
    assert batch.weights_BL.tolist() == [[float(i < 10 and i != 3) for i in range(LENGTH)]] * ROWS


def test_a_random_rate_differs_from_row_to_row():
    counts = prepared(made("mlm", mask_rate_kind="uniform")).weights_BL.sum(1)
    assert len(set(counts.tolist())) > 2


# --- Pairs -------------------------------------------------------------------------------------------------------


def test_half_the_pairs_follow_each_other():
    batch = prepared(made("next_sentence"))
    half = LENGTH // 2 - 1
    vocabulary = made("next_sentence").known_vocabulary
    assert (batch.labels[::2] + batch.labels[1::2] == 1).all()
    drawn = [prepared(made("next_sentence"), key).labels.tolist() for key in range(5)]
    assert len({tuple(labels) for labels in drawn}) > 2
    assert (batch.tokens_BL[:, 0] == vocabulary.special("cls")).all()
    assert (batch.tokens_BL[:, half + 1] == vocabulary.special("sep")).all()
    firsts, seconds = TEXT[:, :half], TEXT[:, half : 2 * half]
    for b, label in enumerate(batch.labels):
        assert batch.tokens_BL[b, 1 : half + 1].tolist() == firsts[b].tolist()
        assert batch.tokens_BL[b, half + 2 :].tolist() == seconds[b ^ label].tolist()


def test_a_model_with_token_types_is_told_the_passages():
    """Both rows of its table are learned; without types nothing is told."""
    for types in (0, 2):
        config = tiny({**overrides("next_sentence"), "model.embedding.token_types": types})
        objective = OBJECTIVES.build("next_sentence", config, Bytes().with_specials(layout_of(config).specials))
        batch, told = objective.prepare(text(objective), jax.random.key(0)), []

        def model(tokens_BT, told=told, **named):
            told.append(named.get("token_types_BT"))
            return jnp.zeros((ROWS, 2))

        objective.losses(model, batch, None, train=False)
        if types == 0:
            assert told == [None]
        else:
            first = batch.tokens_BL == objective.known_vocabulary.special("sep")
            np.testing.assert_array_equal(told[0], np.cumsum(first, axis=1) - first)


def test_a_row_with_padding_is_no_question():
    """Whosever passage the padding stands in."""
    objective = made("next_sentence")
    weights_BL = np.ones(text(objective).tokens_BL.shape, np.float32)
    weights_BL[0, -1] = 0  # in the second passage of the first row
    seen = set()
    for key in range(6):
        batch = prepared(objective, key, weights_BL=jnp.asarray(weights_BL))
        is_used = batch.labels[0] == 0  # by row 0 itself, and by row 1, which is given it
        assert (batch.weights_BL[:2] == (0 if is_used else 1)).all() and (batch.weights_BL[2:] == 1).all()
        seen.add(bool(is_used))
    assert seen == {True, False}


def test_the_size_of_an_evaluation_batch_changes_no_pair():
    """Four and two rows give what six give."""
    objective = made("next_sentence")
    whole, key = prepared(objective), jax.random.key(0)
    parts = [objective.prepare(text(objective).take(rows), key, rows.start) for rows in (slice(0, 4), slice(4, 6))]
    for all_rows, *halves in zip(*map(jax.tree.leaves, (whole, *parts)), strict=True):
        np.testing.assert_array_equal(np.concatenate(halves), all_rows)
    for path in ("train.batch_size", "eval.batch_size"):
        with pytest.raises(ConfigError, match=rf"{path}=5 must be even"):
            tiny({**overrides("next_sentence"), path: 5})


# --- Sequences to sequences --------------------------------------------------------------------------------------


def test_spans_and_text_come_back_together():
    objective = made("span", noise_density=0.3)
    batch, vocabulary = prepared(objective), objective.known_vocabulary
    numbers = {i for name, i in vocabulary.specials.items() if name.startswith("sentinel")}
    for b in range(ROWS):
        target, hidden = batch.tokens_BL[b][batch.segments_BL[b] == 1].tolist(), {}
        for token in target[:-1]:
            if token in numbers:
                hidden[token] = []
            else:
                hidden[list(hidden)[-1]].append(token)
        source = batch.source_BS[b][batch.source_segments_BS[b] == 1].tolist()
        whole = [x for token in source[:-1] for x in hidden.get(token, [token])]
        assert whole == TEXT[b, :LENGTH].tolist()
        assert source[-1] == target[-1] == EOS
    assert objective.losses.__func__ is made("seq2seq").losses.__func__


def test_denoising_asks_for_the_whole_text():
    batch = prepared(made("denoise", noise_density=0.3))
    assert batch.tokens_BL.tolist() == [[*row, EOS] for row in TEXT[:, :LENGTH].tolist()]
    assert (batch.source_BS == MASK).sum(1).min() >= 1
    assert batch.source_BS.shape[1] < LENGTH + 1


def test_the_decoder_reads_its_target_one_token_late():
    tokens = np.array([[5, 6, 7, 8, 9, 0]])
    assert shifted_right(tokens, None, 1).tolist() == [[1, 5, 6, 7, 8, 9]]
    assert shifted_right(tokens, jnp.array([[1, 1, 2, 2, 2, 0]]), 1).tolist() == [[1, 5, 1, 7, 8, 1]]


def test_a_prefix_is_no_target():
    batch = prepared(made("prefix"))
    assert len(set(batch.prefix_length_B.tolist())) > 2
    assert batch.prefix_length_B.min() >= 1
    assert batch.weights_BL.tolist() == [[float(i >= p) for i in range(LENGTH + 1)] for p in batch.prefix_length_B]
    given = prepared(made("prefix"), prefix_length_B=np.full(ROWS, 3))
    assert given.prefix_length_B.tolist() == [3] * ROWS


# --- All of them -------------------------------------------------------------------------------------------------


def random_batch(config: Any, rows: int = ROWS) -> Batch:
    """A batch in the config's layout, all tokens and labels below 2."""
    shapes = layout_of(config).abstract_batch(rows)
    return jax.tree.map(lambda s: jnp.asarray(np.random.default_rng(1).integers(0, 2, s.shape), s.dtype), shapes)


def losses_of(kind: str, accumulate: int) -> list[float]:
    """Six steps on one batch."""
    one_layer = {"model.num_layers": 1, "optimizer.schedule": "constant", "train.accumulate": accumulate}
    config = tiny({**overrides(kind), **one_layer})
    program = Program(config, 300, np.ones(300, np.int32))
    state, step, batch = program.init(0), jax.jit(program.train_step), random_batch(config)
    hyper, found = program.hyperparameters(config), []
    for _ in range(6):
        state, metrics = step(state, batch, jnp.int32(2), hyper)
        found.append(float(metrics["loss"]))
    return found


@pytest.mark.parametrize("kind", sorted(FAMILY))
def test_a_batch_is_learned(kind):
    found = losses_of(kind, 1)
    assert found[-1] < found[0]


@pytest.mark.parametrize("kind", ["prefix", "span"])
def test_microbatches_change_nothing(kind):
    """Their rows have different numbers of targets, and are corrupted before the batch is cut."""
    np.testing.assert_allclose(losses_of(kind, 2), losses_of(kind, 1), rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "family", "needed"),
    [
        ("mlm", "decoder", "model.family=encoder"),
        ("span", "decoder", "model.family=encoder_decoder"),
        ("clm", "encoder", "model.family=decoder or prefix_decoder"),
        ("prefix", "decoder", "model.family=prefix_decoder"),
        ("classify", "encoder", "model.head.kind=classify"),
    ],
)
def test_impossible_combinations_are_one_sentence(kind, family, needed):
    with pytest.raises(ConfigError, match=rf"objective\.kind={kind}: needs {needed.replace('.', '[.]')}, and it is"):
        tiny({"objective.kind": kind, "model.family": family})


def test_auto_follows_family_head_and_data():
    assert objective_name(tiny()) == "clm"
    assert objective_name(tiny({"model.family": "encoder"})) == "mlm"
    assert objective_name(tiny({"model.family": "encoder", "model.head.kind": "classify"})) == "classify"
    assert objective_name(tiny({"model.family": "prefix_decoder"})) == "prefix"
    assert objective_name(tiny({"model.family": "encoder_decoder"})) == "span"


def test_answers_are_numbered_in_context():
    objective, plain = made("in_context"), made("clm")
    program = Program(plain.config, 260, np.ones(260, np.int32))
    model, weights = program.model(program.init(0)), np.zeros((ROWS, LENGTH + 1), np.float32)
    weights[:, [3, 7, 11]] = 1
    batch = text(objective).replace(weights_BL=weights)
    shots, places = (o.losses(model, batch, None, train=False) for o in (objective, plain))
    np.testing.assert_allclose(shots.nll_BT[:, :3], places.nll_BT[:, [2, 6, 10]], rtol=1e-6)
    assert np.asarray(shots.weights_BT).tolist() == [[1.0] * 3 + [0.0] * (LENGTH - 3)] * ROWS


@pytest.mark.parametrize("kind", ["clm", "seq2seq"])
def test_a_packed_row_gives_the_losses_of_its_segments(kind):
    """Two examples in one row, told apart by segments, score as each alone."""
    objective = made(kind)
    program = Program(objective.config, 300, np.ones(300, np.int32))
    model = program.model(program.init(0))
    rng = np.random.default_rng(2)
    texts, sources = ([rng.integers(97, 123, n).astype(np.int32) for n in sizes] for sizes in ((5, 7), (4, 6)))

    def batch(parts: list[int]) -> Batch:
        ids = [np.full(len(texts[i]), n + 1, np.int32) for n, i in enumerate(parts)]
        row = Batch(np.concatenate([texts[i] for i in parts])[None], segments_BL=np.concatenate(ids)[None])
        if kind == "clm":
            return row
        ids = [np.full(len(sources[i]), n + 1, np.int32) for n, i in enumerate(parts)]
        source = np.concatenate([sources[i] for i in parts])[None]
        return row.replace(source_BS=source, source_segments_BS=np.concatenate(ids)[None])

    def scored(parts: list[int]) -> np.ndarray:
        losses = objective.losses(model, batch(parts), None, train=False)
        return np.asarray(losses.nll_BT)[np.asarray(losses.weights_BT) > 0]

    np.testing.assert_allclose(scored([0, 1]), np.concatenate([scored([0]), scored([1])]), rtol=1e-4)
