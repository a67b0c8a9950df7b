"""What is lost without the feed-forward network?

    python -m ablations run no_ffn --profile=quick
    python train.py --config=configs/ablation_no_ffn.py:none

Removing it takes two thirds of a block's parameters away, so the fair comparisons spend them on attention instead: in
more layers (`deeper`), in wider heads (`wider`), or in learned keys and values that every token may attend to
(`persistent`, Sukhbaatar et al. 2019). `linear` keeps the network and its parameters and takes only the non-linearity.
Two tasks show what it is for: whether two bits differ, and addition modulo a prime, which no linear map computes; a
third, repeating what followed the same token before, needs attention alone. The bits have larger initial weights
than usual: with the usual ones a few runs in a hundred stay at chance, with the network and all.
"""

from ablations.profiles import FULL, standard
from ablations.schema import Ablation, Arm, Condition, Contrast, arm_config

NONE = {"model.ffn.kind": "none"}
TASK = {"data.source": "task", "train.eval_every": 100, "optimizer.weight_decay": 0.0}
XOR = {
    **TASK,
    "data.task": "xor",
    "model.d_model": 32,
    "model.init.std": 0.1,
    "train.batch_size": 64,
    "train.steps": 400,
}
SOLVED = {"primary_metric": "accuracy", "positive_control": "solved"}
IN_POINTS = {"metric": "accuracy", "better": "higher"}
CHECK = "tests/claims/test_feedforward.py::"

ABLATION = Ablation(
    question="What is lost without the feed-forward network?",
    arms={
        "gelu": Arm(note="four times as wide inside, GELU"),
        "none": Arm(NONE, note="attention only, a third of a block's parameters"),
        "deeper": Arm({**NONE, "model.num_layers": 12}, note="attention only, three times the layers"),
        "wider": Arm({**NONE, "model.attention.head_dim": 48}, note="attention only, heads three times as wide"),
        "persistent": Arm(
            {**NONE, "model.attention.memory": "persistent", "model.attention.persistent_rows": 256},
            note="attention only, with 256 learned keys and values a layer",
        ),
        "linear": Arm({"model.ffn.kind": "linear"}, note="the network without its non-linearity"),
    },
    conditions={
        "text": Condition(note="a language model"),
        "xor_one_layer": Condition(
            {**XOR, "model.num_layers": 1},
            note="do two bits differ, one layer, larger initial weights (see xor_two_layers)",
            arms=("none", "linear"),
            **SOLVED,
        ),
        "xor_two_layers": Condition(
            {**XOR, "model.num_layers": 2},
            note="do two bits differ, two layers, larger initial weights; set anew after one baseline run in eight had "
            "stayed at chance",
            arms=("none", "linear"),
            **SOLVED,
        ),
        "modular_addition": Condition(
            {
                **TASK,
                "data.task": "modadd",
                "model.num_layers": 1,
                "train.batch_size": 128,
                "train.steps": 800,
                "optimizer.weight_decay": 1.0,
            },
            note="addition modulo a prime, one layer",
            arms=("none", "linear"),
            **SOLVED,
        ),
        "induction": Condition(
            {
                **TASK,
                "data.task": "induction",
                "data.task_length": 8,
                "model.num_layers": 2,
                "model.init.std": 0.1,
                "train.batch_size": 64,
                "train.steps": 500,
            },
            note="what followed the same token before, two layers",
            arms=("none",),
            **SOLVED,
        ),
    },
    contrasts=(
        Contrast("ffn_positionwise", "exact", check=f"{CHECK}TestFfnPositionwise"),
        Contrast("ffn_equals_1x1_conv", "exact", check=f"{CHECK}TestFfnEquals1x1Conv"),
        Contrast("pure_attention_is_linear", "exact", prior="refuted", check=f"{CHECK}TestPureAttentionIsLinear"),
        Contrast("attention_linear_in_v", "exact", check=f"{CHECK}TestAttentionLinearInV"),
        *(
            Contrast(
                "ffn_removal_catastrophic",
                "catastrophe",
                test=arm,
                base="gelu",
                conditions=("text",),
                prior="refuted",
                note=note,
            )
            for arm, note in (
                ("none", "nothing in its place"),
                ("deeper", "its parameters in more layers"),
                ("wider", "its parameters in wider heads"),
                ("persistent", "its parameters in learned keys and values"),
            )
        ),
        Contrast(
            "ffn_removal_catastrophic",
            "catastrophe",
            test="none",
            base="gelu",
            conditions=("induction",),
            prior="refuted",
            **IN_POINTS,
        ),
        *(
            Contrast(
                "nonlinear_functions_need_ffn",
                "catastrophe",
                test=arm,
                base="gelu",
                conditions=("xor_one_layer", "xor_two_layers", "modular_addition"),
                prior="mixed",
                **IN_POINTS,
            )
            for arm in ("none", "linear")
        ),
        Contrast(
            "ffn_linear_activation_collapse",
            "superiority",
            test="linear",
            base="gelu",
            expect="worse",
            conditions=("text",),
            note="the benefit is lost",
        ),
        Contrast(
            "ffn_linear_activation_collapse",
            "equivalence",
            test="linear",
            base="none",
            margin=0.03,
            conditions=("text",),
            note="what is left is what no network has",
        ),
    ),
    profiles=standard(
        smoke={"conditions": ("text", "xor_one_layer")},
        demo={"conditions": ("xor_one_layer",)},
        full={"overrides": {**FULL, "model.d_model": 64}},  # the width at which `wider` and `persistent` spend as much
    ),
    matched=("tokens",),
)


def get_config(arm=""):
    return arm_config(ABLATION, arm)
