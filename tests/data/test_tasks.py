"""Every task of the registry, in every layout: the oracle, the trivial predictor, and what they stand on."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.data.helpers import section
from transformer.data.tasks import TASKS, make_task
from transformer.data.tasks.base import LAYOUTS, Task
from transformer.errors import ConfigError

ROWS = 384
SMALL = {"dyck": {"task_length": 8}, "add": {"task_length": 4}, "modadd": {"task_modulus": 7, "task_train_share": 0.7}}
RAGGED = {"task_length": 6, "task_min_length": 2}
GROUPS = [
    *((name, SMALL.get(name, {})) for name in TASKS),
    # Rows of unequal length, and parameters with a branch of their own.
    ("reverse", RAGGED),
    ("sort", RAGGED),
    ("shift", {**RAGGED, "task_shift": 7}),
    ("majority", {**RAGGED, "task_symbols": 3}),
    ("parity", RAGGED),
    ("delay", RAGGED),
    ("add", {**RAGGED, "task_reversed": False}),
    ("needle", {**RAGGED, "task_distractors": 1}),
    ("needle", {"task_distractors": 5, "task_position": 0.5}),
    ("homonym", {**RAGGED, "task_cue": 1}),
    ("mqar", {"task_queries": 3}),
    ("dyck", {"task_length": 8, "task_types": 6, "task_max_depth": 2, "task_all_targets": True}),
    ("agreement", {"task_depth": 0, "task_attractors": 0}),
]


def group_id(group):
    name, values = group
    return ",".join([name, *(f"{k.removeprefix('task_')}={v}" for k, v in values.items())])


class Drawn:
    """A task in all its layouts, with rows of two keys. All are drawn by one program, compiled without much ado."""

    def __init__(self, name, values):
        chosen = {layout: {"task_layout": layout} for layout in TASKS[name].build.layouts if layout != "sequence"}
        self.tasks: dict[str, Task] = {
            layout: make_task(section("task", task=name, **values, **more))
            for layout, more in {"sequence": {}, **chosen}.items()
        }
        # Validation and test rows are drawn as training rows are, by other keys, but for modular addition.
        self.splits = [s for s in self.tasks["sequence"].splits if name == "modadd" or s not in ("validation", "test")]
        self.keys = [(layout, split) for layout in self.tasks for split in self.splits]
        draw = jax.jit(lambda key: [self.tasks[layout].sample(key, ROWS, split) for layout, split in self.keys])
        fast = draw.lower(jax.random.key(0)).compile(compiler_options={"xla_backend_optimization_level": 0})
        self.draw = lambda seed: dict(zip(self.keys, jax.device_get(fast(jax.random.key(seed))), strict=True))
        self.rows = {seed: self.draw(seed) for seed in (0, 1)}

    def __iter__(self):
        """(task, split, rows) of every layout and split."""
        for layout, split in self.keys:
            yield self.tasks[layout], split, self.rows[0][layout, split]


@functools.cache
def _drawn(name, values) -> Drawn:
    return Drawn(name, dict(values))


def drawn(name, values) -> Drawn:
    return _drawn(name, tuple(values.items()))


ALL = pytest.mark.parametrize("group", GROUPS, ids=map(group_id, GROUPS))


def accuracy(task, batch, predictions) -> tuple[float, float]:
    """(weighted accuracy, its standard error from the spread between rows)."""
    weights = task.weights(batch).reshape(batch.rows, -1)
    right = ((predictions == task.targets(batch)).reshape(batch.rows, -1) * weights).sum(axis=1)
    count = weights.sum(axis=1)
    mean = right.sum() / count.sum()
    return float(mean), float((right - mean * count).std() * math.sqrt(batch.rows) / count.sum())


@ALL
def test_the_oracle_is_right(group):
    for task, split, batch in drawn(*group):
        mean, error = accuracy(task, batch, task.oracle(batch))
        if task.ceiling == 1:
            assert mean == 1, split
        elif split != "long":  # the stated ceiling is that of the training length
            assert abs(mean - task.ceiling) < 4 * error


@ALL
def test_the_trivial_predictor_scores_chance(group):
    for task, split, batch in drawn(*group):
        mean, error = accuracy(task, batch, task.trivial(batch))
        assert abs(mean - task.chance(split)) < 4 * error + 1e-9, split
        assert task.chance(split) < task.ceiling


@ALL
def test_the_oracle_sees_only_what_a_model_may_see(group):
    """It names the same answers when the targets are wiped out, and is caught out when they are another row's."""
    for task, _, batch in drawn(*group):
        targets, weights = task.targets(batch), task.weights(batch)
        flat = weights.reshape(ROWS, -1)
        first = np.zeros(flat.shape, bool)  # the first target of every row: what comes later may follow from it
        first[np.arange(ROWS), flat.argmax(axis=1)] = True
        first = first.reshape(targets.shape)
        answers = task.oracle(batch)[first]
        wiped = np.where(first, (targets + 1) % (targets.max() + 1), targets)
        changed = batch.replace(
            **{"tokens_BL": wiped, "weights_BL": first} if batch.labels is None else {"labels": wiped}
        )
        assert np.array_equal(task.oracle(changed)[first], answers)
        swapped = np.roll(targets[first], 1)
        assert (answers == swapped).mean() < (answers == targets[first]).mean()


@ALL
def test_rows_are_what_the_task_says_they_are(group):
    for task, split, batch in drawn(*group):
        for found, wanted in zip(jax.tree.leaves(batch), jax.tree.leaves(task.shape(split)), strict=True):
            assert found.shape[1:] == wanted.shape[1:] and found.dtype == wanted.dtype
            assert found.dtype in (np.int32, np.float32)
        for tokens, segments in ((batch.tokens_BL, batch.segments_BL), (batch.source_BS, batch.source_segments_BS)):
            if tokens is not None:
                assert tokens.min() >= 0 and tokens.max() < task.vocab_size
                assert np.array_equal(tokens == task.pad, np.zeros_like(tokens) if segments is None else segments == 0)
        weights = task.weights(batch)
        assert (weights.reshape(ROWS, -1).sum(axis=1) > 0).mean() > 0.9
        if batch.labels is None:
            assert not weights[:, 0].any() and not weights[batch.tokens_BL == task.pad].any()
        else:
            assert batch.labels.min() >= 0 and batch.labels.max() < task.num_labels
        assert (task.num_labels > 0) == (batch.labels is not None)
        if split == "train":
            assert task.sequence_length == batch.tokens_BL.shape[1]
            assert task.source_length == (0 if batch.source_BS is None else batch.source_BS.shape[1])


@ALL
def test_the_key_decides_everything(group):
    """Equal rows for equal keys, from any instance of the task; others for another key."""
    one = drawn(*group)
    assert all(map(np.array_equal, jax.tree.leaves(one.rows[0]), jax.tree.leaves(one.draw(0))))
    for key in one.keys:
        pairs = zip(jax.tree.leaves(one.rows[0][key]), jax.tree.leaves(one.rows[1][key]), strict=True)
        assert not all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["facts", "modadd", "markov", "translation"])
def test_tables_are_the_same_in_every_process(name):
    code = f"""
from tests.data.helpers import section
from transformer.data.tasks import make_task
import hashlib, numpy as np
tables = [v for v in vars(make_task(section("task", task="{name}"))).values() if isinstance(v, np.ndarray | dict)]
arrays = [a for t in tables for a in (t.values() if isinstance(t, dict) else [t])]
print(hashlib.sha256(b"".join(np.round(a, 6).tobytes() for a in arrays)).hexdigest()[:12])
"""
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    }
    assert len(found) == 1


@ALL
def test_a_row_can_be_read(group):
    for task, _, batch in drawn(*group):
        text = task.to_text(batch, int(task.weights(batch).reshape(ROWS, -1).sum(axis=1).argmax()))
        assert "[" in text and "<pad>" not in text and len(text.split()) >= 2


@ALL
def test_layouts_ask_the_same_questions(group):
    one = drawn(*group)
    for split in one.splits:
        asked = [
            [task._asked(one.rows[0][layout, split], b)[0] for b in range(ROWS)]
            for layout, task in one.tasks.items()
            if len(one.tasks) > 1
        ]
        assert all(questions == asked[0] for questions in asked)


@pytest.mark.parametrize("group", [g for g in GROUPS if "long" in TASKS[g[0]].build.splits], ids=group_id)
def test_long_rows_are_longer_than_any_in_training(group):
    one = drawn(*group)
    task = one.tasks["sequence"]
    length = {split: (rows.tokens_BL != task.pad).sum(axis=1) for (_, split), rows in one.rows[0].items()}
    assert length["long"].max() > length["train"].max()
    if group[0] not in ("agreement", "translation"):  # there, more clauses of fewer words may be as long
        assert length["long"].min() > length["train"].max()


def test_every_layout_is_used():
    assert {layout for entry in TASKS.values() for layout in entry.build.layouts} == set(LAYOUTS)


# --- Single tasks ------------------------------------------------------------------------------------------------


def test_modular_addition_never_trains_on_what_it_tests():
    one = drawn("modadd", SMALL["modadd"])
    task = one.tasks["sequence"]
    parts = {split: {tuple(pair) for pair in pairs.tolist()} for split, pairs in task.pairs.items()}
    assert sum(map(len, parts.values())) == 49 == len(set.union(*parts.values()))
    assert {split: len(pairs) for split, pairs in parts.items()} == {"train": 35, "validation": 7, "test": 7}
    for split, pairs in parts.items():
        asked = {tuple(row[:2]) for row in one.rows[0]["sequence", split].tokens_BL.tolist()}
        assert asked == pairs


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("markov", {"task_length": 64, "task_symbols": 6}),
        ("periodic", {"task_symbols": 6, "task_lines": 40}),
        ("dyck", {"task_length": 8, "task_types": 6, "task_max_depth": 2, "task_all_targets": True}),
    ],
)
def test_stated_entropies_are_those_of_the_rows(name, values):
    """Against the frequencies with which rows continue: -log p of what followed, p counted over the same state."""
    one = drawn(name, values)
    task = one.tasks["sequence"]
    tokens = np.concatenate([one.draw(seed)["sequence", "train"].tokens_BL for seed in range(20)])
    if name == "markov":
        state = tokens[:, :-1]
        following = tokens[:, 1:]
    elif name == "periodic":
        state = tokens[:, : -task.section.task_columns]
        following = tokens[:, task.section.task_columns :]
    else:  # brackets: the place, how deep, and what is open
        state, following = np.zeros_like(tokens[:, 1:]), tokens[:, 1:]
        for b, row in enumerate(tokens):
            stack = []
            for place, token in enumerate(row[:-1]):
                stack = [*stack, token] if token < task.types else stack[:-1]
                state[b, place] = (place * 20 + len(stack)) * 20 + (stack[-1] if stack else 19)
    pairs, joint = np.unique(np.stack([state.ravel(), following.ravel()]), axis=1, return_counts=True)
    totals = dict(zip(*np.unique(state, return_counts=True), strict=True))
    counted = -sum(n * math.log(n / totals[s]) for s, n in zip(pairs[0], joint, strict=True)) / joint.sum()
    assert counted == pytest.approx(task.entropy, abs=0.01)


def test_answers_come_in_equal_numbers():
    for name in ("facts", "modadd", "majority", "role", "image", "two_pointer"):
        one = drawn(name, SMALL.get(name, {}))
        labels = np.concatenate([one.draw(seed)["label", "train"].labels for seed in range(20)])
        counts = np.bincount(labels, minlength=one.tasks["label"].num_labels)
        expected = len(labels) / len(counts)
        assert (abs(counts - expected) < 5 * math.sqrt(expected)).all(), name


def test_the_needle_lies_where_it_is_put():
    tokens = drawn("needle", {"task_distractors": 5, "task_position": 0.5}).rows[0]["sequence", "train"].tokens_BL
    asked = tokens[:, 32]
    assert (tokens[:, 16] == asked).all()  # slot 8 of 16
    keys = tokens[:, :32:2]
    assert ((keys < 16).sum(axis=1) == 6).all() and ((keys == asked[:, None]).sum(axis=1) == 1).all()


def test_translations_know_what_they_translate():
    task = drawn("translation", {}).tasks["sequence"]
    question = task.vocabulary.encode("adj1 noun3 verb0 noun2 verb5").tolist()
    pairs = task.aligned(question)
    assert [place for _, place in pairs] == [2, 1, 0, 4, 3]
    assert [token for token, _ in pairs] + [task.eos] == task.solve(question, task.sep)
    verb, noun, adjective = (task.name(token) for token, _ in pairs[:3])
    assert noun.startswith("N") and verb[1] == adjective[1] == "mf"[task.gender[3]]


def test_brackets_stay_within_their_depth():
    one = drawn("dyck", {"task_length": 8, "task_types": 6, "task_max_depth": 2, "task_all_targets": True})
    tokens = one.rows[0]["sequence", "long"].tokens_BL
    depth = np.where(tokens < 6, 1, -1).cumsum(axis=1)
    assert depth.min() >= 0 and depth.max() == 2 and not depth[:, -1].any()


def test_agreement_has_attractors_that_mislead():
    one = drawn("agreement", {})
    task, batch = one.tasks["sequence"], one.rows[0]["sequence", "train"]
    misled = [
        [task.name(t) for t in row if t < task.nouns][-1] in ("dogs", "men", "cats", "birds") for row in batch.tokens_BL
    ]
    first = task.weights(batch).argmax(axis=1)
    plural = batch.tokens_BL[np.arange(ROWS), first] == task.nouns + 1
    assert 0.2 < (plural != np.array(misled)).mean() < 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "copi"}, r"data\.task='copi' is not one of: .*Did you mean \"copy\""),
        (
            {"task": "copy", "task_layout": "label"},
            r"data\.task_layout=label is not one of its layouts: sequence, pair",
        ),
        ({"task": "copy", "task_min_length": 20}, r"data\.task_min_length=20 from 0 to it"),
        ({"task": "induction", "task_length": 17}, r"data\.task_length=17 must be from 2 to data\.task_symbols=16"),
        ({"task": "mqar", "task_pairs": 17}, r"data\.task_pairs=17 must be from 1"),
        ({"task": "mqar", "task_queries": 9}, r"data\.task_queries=9"),
        ({"task": "needle", "task_distractors": 16}, r"data\.task_distractors=16 must be from 0 to 15"),
        ({"task": "needle", "task_position": 2.0}, r"data\.task_position=2\.0"),
        ({"task": "modadd", "task_train_share": 1.0}, r"leave no pair for one of the splits"),
        ({"task": "homonym", "task_cue": 0}, r"data\.task_cue=0"),
        ({"task": "dyck", "task_length": 7}, r"must be even"),
        ({"task": "icl_linear", "task_prime": 9}, r"data\.task_prime=9 is no prime"),
        ({"task": "image", "task_canvas": 6}, r"data\.task_canvas=6 must be at least 7"),
        ({"task": "periodic", "task_noise": 0.95}, r"data\.task_noise=0\.95"),
        ({"task": "markov", "task_concentration": 0.0}, r"data\.task_concentration above 0"),
        ({"task": "facts", "task_facts": 0}, r"data\.task_facts"),
        ({"task": "two_pointer", "task_items": 1}, r"data\.task_items"),
        ({"task": "translation", "task_clauses": 0}, r"data\.task_clauses"),
        ({"task": "agreement", "task_depth": -1}, r"data\.task_depth"),
    ],
)
def test_impossible_parameters_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        make_task(section("task", **values))
