"""How many heads does attention need?

    python -m ablations run heads --profile=quick
    python train.py --config=configs/ablation_heads.py:one

The width stays: h heads are d_model / h wide, so parameters and products are the same in every arm. RoPE gives narrow
heads fewer frequencies (one for heads 2 wide, as 32 are at quick scale), which is tested along with their number;
learned positions would not, but at quick scale a model with them does not get below the bigram bound, and no answer
could be given. Where a language model is too small to tell, `pointers` asks for what one softmax is said not to do:
name two items at once. With positions that act on scores alone the two items' values come mixed; with a position added
to each value a single head can keep them apart, and so can a second layer. Of four items with four values a head can
also tell the mixture, by weighing one more than the other, which `pointers_many` makes harder. It was added after that
had been seen, and changed once: with thirty-two values and the usual initialisation four heads were right half of the
time, so nobody could be judged by it.
"""

from ablations.profiles import DEMO, SMOKE, standard
from ablations.schema import Ablation, Arm, Condition, Contrast, arm_config

POINTERS = {
    "data.source": "task",
    "data.task": "two_pointer",
    "data.task_items": 4,
    "data.task_values": 4,
    "model.num_layers": 1,
    "train.batch_size": 64,
    "train.steps": 500,
    "train.eval_every": 100,
}
MANY = {**POINTERS, "data.task_items": 8, "data.task_values": 16, "model.init.std": 0.1, "train.steps": 800}
WIDE = {"model.d_model": 64}  # RoPE turns pairs, of which 32 heads have one each at this width
LEARNED = {**POINTERS, "model.position.kind": "learned"}
POINTED = {"arms": ("one", "two"), "primary_metric": "accuracy", "positive_control": "solved"}
TWO_OVER_ONE = {
    "type": "superiority",
    "test": "two",
    "base": "one",
    "expect": "better",
    "metric": "accuracy",
    "better": "higher",
    "margin": 10.0,
}

ABLATION = Ablation(
    question="How many heads does attention need?",
    arms={
        "four": Arm({"model.attention.num_heads": 4}, note="four heads"),
        "one": Arm({"model.attention.num_heads": 1}, note="one head, as wide as the stream"),
        "two": Arm({"model.attention.num_heads": 2}, note="two heads, half as wide"),
        "eight": Arm({"model.attention.num_heads": 8}, note="eight heads"),
        "thirty_two": Arm(
            {"model.attention.num_heads": 32},
            note="thirty-two heads, which RoPE leaves few frequencies: one each where the stream is 64 wide",
        ),
    },
    conditions={
        "text": Condition(note="a language model", arms=("one", "eight", "thirty_two")),
        "pointers": Condition(POINTERS, note="two items at once, one layer, positions in the scores only", **POINTED),
        "pointers_learned": Condition(LEARNED, note="the same, a learned position in each value", **POINTED),
        "pointers_many": Condition(
            MANY,
            note="eight items with sixteen values, one layer, larger initial weights; set anew after a first version, "
            "thirty-two values, that four heads had not solved",
            **POINTED,
        ),
        "pointers_two_layers": Condition(
            {**POINTERS, "model.num_layers": 2},
            note="the same with two layers, positions in the scores only",
            **POINTED,
        ),
    },
    contrasts=(
        Contrast("mha_param_parity", "exact", check="tests/claims/test_heads.py::TestParity"),
        Contrast(
            "more_heads_add_params",
            "exact",
            prior="refuted",
            check="tests/claims/test_heads.py::TestMoreHeadsAddParameters",
        ),
        *(
            Contrast(
                "multihead_beats_single_head",
                "superiority",
                test=arm,
                base="one",
                expect="better",
                conditions=("text",),
                prior="mixed",
            )
            for arm in ("four", "eight", "thirty_two")
        ),
        Contrast(
            "heads_saturate_5_10",
            "superiority",
            test="eight",
            base="one",
            expect="better",
            conditions=("text",),
            prior="mixed",
            note="eight heads have a benefit over one",
        ),
        Contrast(
            "heads_saturate_5_10",
            "superiority",
            test="eight",
            base="four",
            expect="better",
            conditions=("text",),
            prior="mixed",
            note="and over four: below five to ten something is missing",
        ),
        Contrast(
            "multihead_two_pointer",
            **TWO_OVER_ONE,
            conditions=("pointers", "pointers_learned", "pointers_two_layers"),
            prior="mixed",
        ),
        Contrast(
            "multihead_two_pointer",
            **TWO_OVER_ONE,
            conditions=("pointers_many",),
            prior="mixed",
            note="with many values to tell apart",
        ),
    ),
    profiles=standard(
        smoke={"conditions": ("text", "pointers"), "overrides": {**SMOKE, **WIDE}},
        demo={"conditions": ("pointers",), "overrides": {**DEMO, **WIDE}},
    ),
    matched=("tokens", "parameters", "flops", "depth"),
)


def get_config(arm=""):
    return arm_config(ABLATION, arm)
