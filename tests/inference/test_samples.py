"""Whatever kind of model a run trained, `--checks=generate` shows what it writes, or says why it writes nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from tests.tiny import tiny
from transformer.data.batch import Batch
from transformer.data.vocabularies import EOS, MASK, Bytes
from transformer.errors import ConfigError, UserError
from transformer.inference import samples
from transformer.inference.checks import CHECKS, Subject
from transformer.inference.generate import generate
from transformer.inference.masked import MaskPredict, fill
from transformer.inference.questions import questions
from transformer.model import FAMILIES
from transformer.training import run as run_module
from transformer.training.run import LoadedRun, load_dataset, make_program

BASE = {"model.vocab_size": 0, "model.num_layers": 1, "decode.sampler": "greedy", "decode.max_new_tokens": 12}
TASK = {"data.source": "task", "data.task_length": 3}
LEARNED = {"model.position.kind": "learned"}
ANSWERS = {"rows", "greedy_exact_match", "tokens_per_second", "answers"}
FILLED = {"rows", "places", "right", "places_per_second", "texts"}
TEXT = {"prompt", "new_tokens", "greedy", "tokens_per_second"}
# Overrides, and the names of what the check shows.
RUNS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "text": ({"data.source": "text"}, TEXT),
    "task": ({**TASK, "data.task": "copy"}, ANSWERS),
    "task, variable lengths": ({**TASK, "data.task": "reverse", "data.task_min_length": 1, **LEARNED}, ANSWERS),
    "task in context": ({"data.source": "task", "data.task": "icl_map", "data.task_shots": 4}, ANSWERS),
    "pairs in one row": ({"data.source": "pairs", "data.sequence_length": 16}, ANSWERS),
    "packed pairs": ({"data.source": "pairs", "data.packing": "segments", "data.sequence_length": 40}, ANSWERS),
    "single texts": ({"data.source": "labelled"}, ANSWERS),
    "prefix of text": ({"data.source": "text", "model.family": "prefix_decoder"}, TEXT),
    "prefix of a pair": (
        {"data.source": "pairs", "model.family": "prefix_decoder", "data.sequence_length": 16},
        ANSWERS,
    ),
    "source and target": ({"data.source": "pairs", "model.family": "encoder_decoder"}, ANSWERS),
    "no cross-attention": (
        {"data.source": "pairs", "model.family": "encoder_decoder", "model.cross_attention": "none"},
        ANSWERS,
    ),
    "task with a source": (
        {**TASK, "data.task": "copy", "data.task_layout": "pair", "model.family": "encoder_decoder"},
        ANSWERS,
    ),
    "spans": ({"data.source": "text", "model.family": "encoder_decoder", "data.sequence_length": 16}, ANSWERS),
    "masked text": ({"data.source": "text", "model.family": "encoder"}, FILLED),
    "masked pairs": ({"data.source": "pairs", "model.family": "encoder", "data.sequence_length": 16}, FILLED),
    "classes": (
        {"data.source": "labelled", "model.family": "encoder", "model.head.kind": "classify"},
        {samples.NOTHING},
    ),
    "tags": (
        {
            **{"data.source": "task", "data.task": "homonym", "data.task_layout": "tag"},
            **{"model.family": "encoder", "model.head.kind": "tag"},
        },
        {samples.NOTHING},
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, dict[str, str]]:
    """What the sources of RUNS read."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "text.txt").write_text("abcdefghij" * 60)
    (folder / "pairs.tsv").write_text("".join(f"{i}\tno {i}\n" for i in range(60)))
    (folder / "labels.csv").write_text("text,label\n" + "".join(f"no {i},{'ab'[i % 2]}\n" for i in range(60)))
    return {
        "text": {"data.path": f"{folder}/text.txt"},
        "pairs": {"data.path": f"{folder}/pairs.tsv"},
        "labelled": {"data.path": f"{folder}/labels.csv", "data.label_column": "label"},
        "task": {},
    }


@pytest.fixture(scope="module")
def subject(files):
    def make(overrides: dict[str, Any]) -> Subject:
        """An untrained model and its data."""
        config = tiny({**BASE, **files[overrides["data.source"]], **overrides})
        dataset = load_dataset(config)
        program = make_program(config, dataset)
        state = program.init(0)
        return Subject(
            LoadedRun(program.model(state), config, dataset.vocabulary, program, state, 0), dataset, "validation"
        )

    return make


def test_every_family_writes():
    assert set(samples.WRITERS) == set(FAMILIES)


@pytest.mark.parametrize(("overrides", "shown"), RUNS.values(), ids=RUNS)
def test_every_kind_of_run_is_answered(subject, overrides, shown):
    assert set(CHECKS.build("generate", subject(overrides))) == shown


# --- Questions ---------------------------------------------------------------------------------------------------


def asked(subject: Subject, *lead: int) -> list[tuple[str, str, str | None, int]]:
    spell = subject.run.vocabulary.spell
    return [
        (spell(q.prompt), spell(q.wanted), None if q.source is None else spell(q.source), q.limit)
        for q in questions(samples.first_rows(subject), lead, subject.run.vocabulary.eos)
    ]


def test_a_pair_in_one_row_asks_for_its_target(subject):
    for packed in ({}, {"data.packing": "segments", "data.sequence_length": 40}):
        found = asked(subject({"data.source": "pairs", "data.sequence_length": 16, **packed}))
        for prompt, wanted, source, _ in found:
            assert prompt.endswith("<sep>") and wanted == f"no {prompt.removesuffix('<sep>')}" and source is None


def test_a_source_asks_for_its_target(subject):
    for packed in ({}, {"data.packing": "segments", "data.sequence_length": 40}):
        one = subject({"data.source": "pairs", "model.family": "encoder_decoder", **packed})
        bos = one.run.vocabulary.special("bos")
        found = questions(samples.first_rows(one), [bos], EOS)
        assert all(q.prompt.tolist() == [bos] and q.wanted[-1] == q.source[-1] == EOS for q in found)
        for _, wanted, source, limit in asked(one, bos):
            assert wanted == f"no {source}"
            assert packed or limit == one.dataset.layout.length


def test_a_task_asks_for_what_counts(subject):
    for prompt, wanted, _, limit in asked(subject({**TASK, "data.task": "copy"})):
        assert prompt == f"{wanted} <sep>" and limit == 3
    for prompt, wanted, _, _ in asked(subject({"data.source": "task", "data.task": "icl_map", "data.task_shots": 9})):
        examples = prompt.split()
        assert len(wanted.split()) == 1 and wanted == examples[1 + examples.index(examples[-1])]


def test_rows_without_targets_ask_nothing():
    batch = Batch(np.ones((2, 3), np.int32), weights_BL=np.array([[0, 0, 0], [0, 1, 1]], np.float32))
    (question,) = questions(batch)
    assert question.prompt.tolist() == [1] and question.wanted.tolist() == [1, 1]


def test_only_right_answers_are_counted(subject):
    """A beginning is none."""
    one = subject({"data.source": "pairs", "data.sequence_length": 16, "decode.max_new_tokens": 16})
    found = questions(samples.first_rows(one), eos=EOS)
    own = generate(one.run.model, [q.prompt for q in found], [q.limit for q in found], stop_tokens=[EOS]).new
    wanted = [dataclasses.replace(q, wanted=new, limit=len(new)) for q, new in zip(found, own, strict=True)]
    assert samples._answered(one, wanted)["greedy_exact_match"] == 1
    wanted[0] = dataclasses.replace(wanted[0], wanted=wanted[0].wanted + 1)
    assert samples._answered(one, wanted)["greedy_exact_match"] == 1 - 1 / len(wanted)
    right = max(wanted[1:], key=lambda q: len(q.wanted))
    assert samples._answered(one, [dataclasses.replace(right, limit=len(right.wanted) - 1)])["greedy_exact_match"] == 0


# --- Prompts -----------------------------------------------------------------------------------------------------


def test_a_prompt_is_translated_as_the_data_is(subject):
    one = subject({"data.source": "pairs", "model.family": "encoder_decoder", "decode.prompt": "17"})
    shown = CHECKS.build("generate", one)
    bos, source = one.run.vocabulary.special("bos"), np.array([[*b"17", EOS]])
    wanted = generate(one.run.model, [[bos]], shown["new_tokens"], stop_tokens=[EOS], source_BS=source)
    assert shown["greedy"] == one.run.vocabulary.spell(wanted.new[0])


def test_a_prompt_has_room_for_a_whole_target_however_full_the_rows_are(subject):
    packed = {"data.packing": "segments", "data.sequence_length": 40, "decode.max_new_tokens": 30}
    one = subject({"data.source": "pairs", "model.family": "encoder_decoder", "decode.prompt": "17", **packed})
    assert all(q.limit < 30 for q in questions(samples.first_rows(one), [one.run.vocabulary.special("bos")], EOS))
    assert CHECKS.build("generate", one)["new_tokens"] == 30


def test_gaps_of_a_prompt_are_filled(subject):
    one = subject({"data.source": "text", "model.family": "encoder", "decode.prompt": "ab<mask>de<mask>"})
    shown = CHECKS.build("generate", one)
    text = np.array([[*b"ab", MASK, *b"de", MASK]])
    wanted = fill(one.run.model, text, text == MASK, MASK, MaskPredict(10))
    assert shown == {"prompt": "ab<mask>de<mask>", "mask_predict": one.run.vocabulary.spell(wanted[0])}
    drawn = {"decode.fill": "gibbs", "decode.fill_steps": 20, "decode.fill_temperature": 2.0}
    assert set(CHECKS.build("generate", subject({**one_prompt(one), **drawn}))) == {"prompt", "gibbs"}


def one_prompt(one: Subject) -> dict[str, Any]:
    return {"data.source": "text", "model.family": "encoder", "decode.prompt": one.run.config.decode.prompt}


def test_what_was_hidden_is_compared(subject):
    one = subject({"data.source": "text", "model.family": "encoder"})
    batch = samples.first_rows(one)
    batch = batch.take((batch.weights_BL > 0).any(axis=1))
    free = batch.weights_BL > 0
    filled = fill(one.run.model, batch.labels, free, MASK, MaskPredict(10), segments_BT=batch.segments_BL)
    shown = CHECKS.build("generate", one)
    assert shown["places"] == free.sum() == round(0.15 * 8) * len(free)
    assert shown["right"] == pytest.approx((filled == batch.labels)[free].mean())
    assert shown["texts"].count("<mask>") == samples.SHOWN


REFUSED = {
    "no gap": ({"model.family": "encoder", "decode.prompt": "abc"}, "decode.prompt has no <mask>"),
    "longer than the model's table": (
        {"model.family": "encoder", "decode.prompt": "<mask>" * 9, **LEARNED},
        "decode.prompt has 9 tokens, but the model knows 8 positions",
    ),
    "longer than the encoder's table": (
        {"model.family": "encoder_decoder", "decode.prompt": "a" * 9, **LEARNED},
        "decode.prompt has 10 tokens, but the encoder knows 8 positions",
    ),
    "longer than the cache": (
        {"decode.prompt": "abcdefgh", "decode.cache_capacity": 5},
        r"8 prompt tokens and 12 new ones do not fit into a cache of 5; .* raise decode\.cache_capacity",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_prompts_that_do_not_fit_are_refused(subject, overrides, message):
    source = "pairs" if overrides.get("model.family") == "encoder_decoder" else "text"
    with pytest.raises(UserError, match=message):
        CHECKS.build("generate", subject({"data.source": source, **overrides}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"decode.fill_iterations": 0}, r"decode\.fill=mask_predict: decode\.fill_iterations=0 predicts nothing"),
        ({"decode.fill": "gibbs", "decode.fill_steps": 0}, r"decode\.fill_steps=0 draws nothing"),
        ({"decode.fill_steps": 5}, r"only decode\.fill=gibbs reads it"),
    ],
)
def test_settings_that_fill_nothing_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny(overrides)


# --- Shots -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["clm", "in_context"])
def test_shots_are_the_examples_before_an_answered(subject, objective):
    one = subject({"data.source": "task", "data.task": "icl_map", "data.task_shots": 5, "objective.kind": objective})
    right, counted = np.zeros(5), np.zeros(5)
    for batch in one.dataset.batches("validation", 64):
        logits = np.asarray(jax.jit(one.run.model)(batch.tokens_BL[:, :-1]))
        for row, place in np.argwhere(np.asarray(batch.weights_BL) > 0):
            counted[place // 2] += 1
            right[place // 2] += logits[row, place - 1].argmax() == batch.tokens_BL[row, place]
    assert counted[0] == 0 and counted[1:].all()  # the first input is always new
    shown = CHECKS.build("shots", one)
    assert shown.pop("chance") == one.dataset.task.chance("validation")
    assert shown == {f"after_{n}_examples": pytest.approx(right[n] / counted[n]) for n in range(1, 5)}


def test_shots_need_examples_in_context(subject):
    for overrides in ({"data.source": "text"}, {**TASK, "data.task": "copy"}):
        with pytest.raises(UserError, match=r"--checks=shots needs .* data\.task=icl_map"):
            CHECKS.build("shots", subject(overrides))


# --- Special tokens written out ----------------------------------------------------------------------------------


def test_special_tokens_are_read_as_they_are_written():
    vocabulary = Bytes().with_specials(["sep", "sentinel_0", "sentinel_1"])
    text = "a<sentinel_1>bc<mask><sep>é"
    ids = vocabulary.parse(text)
    assert len(ids) == 8 and vocabulary.spell(ids) == text and vocabulary.decode(ids) == "abcé"
    assert vocabulary.spell([*ids, EOS, vocabulary.special("pad")]) == text
    assert vocabulary.parse("<b>").tolist() == [*b"<b>"]


# --- Marks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"data.source": "text", "model.family": "encoder"}, ["unigram entropy 2.303", "bigram entropy 0.000"]),
        ({"data.source": "pairs", "model.family": "encoder_decoder"}, ["unigram entropy", "bigram entropy"]),
        ({"data.source": "labelled", "model.family": "encoder", "model.head.kind": "classify"}, ["label entropy 0.6"]),
        (
            {"data.source": "text", "model.family": "encoder", "model.head.kind": "classify"}
            | {"objective.kind": "next_sentence"},
            ["label entropy 0.693"],
        ),
        ({"data.source": "text", "model.family": "encoder_decoder", "data.sequence_length": 16}, ["no simple mark"]),
        (
            {"data.source": "text", "model.family": "encoder_decoder", "objective.kind": "denoise"},
            ["unigram entropy 2.303"],
        ),
        ({**TASK, "data.task": "copy"}, ["accuracy by chance 0."]),
    ],
    ids=["masked text", "pairs", "classes", "next sentence", "spans", "whole text", "task"],
)
def test_the_marks_that_apply_are_told(subject, overrides, told):
    one = subject(overrides)
    line = run_module._bounds(one.dataset, one.run.program)
    for text in told:
        assert text in line
    if "label entropy" in line:
        assert "unigram" not in line
