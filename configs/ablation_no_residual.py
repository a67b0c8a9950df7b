"""What if you remove the residual connections? And can anything take their place?

    python -m ablations run no_residual --profile=quick
    python train.py --config=configs/ablation_no_residual.py:none
    python train.py --config=configs/ablation_no_residual.py:shaped

Norms stay where they are, in front of each sublayer, so signals keep their size; what a stack without skips loses are
the differences between tokens. Removing the skips changes nothing else in `none`. In `rescaled` the initial weights
also keep the variance of what they read (the usual ones count on the skips), and in `shaped` attention starts as the
identity besides and learns how far to leave it (Noci et al. 2023, He & Hofmann 2023). Depth is a condition. All arms
see the same tokens: whether a stack without skips would get there later, as He et al. (2023) report, is not asked.
The quick profile was set anew after a first version with eight test seeds: runs that learn nothing but how frequent
each byte is count as diverged, signs decide where some do, and eight of them, all alike, are not enough for one
comparison among sixteen. Ten are; for them each run is a sixth shorter.
"""

from ablations.profiles import QUICK, standard
from ablations.schema import Ablation, Arm, Condition, Contrast, arm_config

NO_ATTENTION_SKIP = {"model.residual.attention.skip_gain": 0.0}
NO_FFN_SKIP = {"model.residual.ffn.skip_gain": 0.0}
NONE = {**NO_ATTENTION_SKIP, **NO_FFN_SKIP}
RESCALED = {**NONE, "model.init.scheme": "lecun"}
SHAPED = {**RESCALED, "model.attention.weights": "shaped", "model.attention.zero_query_init": True}
COPY = {
    "data.source": "task",
    "data.task": "copy",
    "data.task_length": 8,
    "model.num_layers": 2,
    "train.batch_size": 64,
    "train.steps": 300,
    "train.eval_every": 100,
    "optimizer.weight_decay": 0.0,
}
# Windows of 64 instead of 128, for more steps from the same text: deep stacks want steps.
STEPS = {
    "data.sequence_length": 64,
    "train.steps": 320,
    "train.eval_every": 64,
    "train.checkpoint_every": 160,
    "optimizer.warmup_steps": 32,
    "eval.tokens": 16384,
}
CHECK = "tests/claims/test_residual.py::"

ABLATION = Ablation(
    question="What if you remove the residual connections, and can anything take their place?",
    arms={
        "skips": Arm(note="x + f(norm(x))"),
        "none": Arm(NONE, note="f(norm(x)), and nothing else changed"),
        "rescaled": Arm(RESCALED, note="f(norm(x)), initial weights that keep the variance"),
        "shaped": Arm(SHAPED, note="f(norm(x)), such weights, and attention that starts as the identity"),
        "no_attention_skip": Arm(NO_ATTENTION_SKIP, note="the feed-forward network keeps its skip"),
        "no_ffn_skip": Arm(NO_FFN_SKIP, note="attention keeps its skip"),
    },
    conditions={
        "two_layers": Condition({"model.num_layers": 2}, arms=("none", "rescaled", "shaped")),
        "four_layers": Condition({"model.num_layers": 4}),
        "eight_layers": Condition({"model.num_layers": 8}, arms=("rescaled", "shaped")),
        "copy": Condition(
            COPY,
            note="eight symbols once more, two layers",
            arms=("none", "rescaled"),
            primary_metric="accuracy",
            positive_control="solved",
        ),
    },
    contrasts=(
        Contrast("residual_gradient_identity", "exact", check=f"{CHECK}TestResidualGradientIdentity"),
        Contrast("rank_collapse", "exact", check=f"{CHECK}TestRankCollapse"),
        Contrast("residual_near_identity_init", "exact", prior="refuted", check=f"{CHECK}TestResidualNearIdentityInit"),
        Contrast(
            "residual_prevents_vanishing_gradient",
            "exact",
            check=f"{CHECK}TestGradientsFadeWithoutNorms",
            note="a stack without norms",
        ),
        Contrast(
            "residual_prevents_vanishing_gradient",
            "exact",
            prior="refuted",
            check=f"{CHECK}TestGradientsStayWithNorms",
            note="a stack with its norms",
        ),
        *(
            Contrast(
                "residual_removal_fails_deep",
                "catastrophe",
                test=arm,
                base="skips",
                conditions=conditions,
                prior=prior,
                note=note,
            )
            for arm, conditions, prior, note in (
                (
                    "none",
                    ("two_layers", "four_layers"),
                    "supported",
                    "the skips are removed and nothing else is changed",
                ),
                (
                    "rescaled",
                    ("two_layers", "four_layers", "eight_layers"),
                    "supported",
                    "the initial weights keep the variance",
                ),
                (
                    "shaped",
                    ("two_layers", "four_layers", "eight_layers"),
                    "refuted",
                    "attention that starts as the identity takes the place of the skips",
                ),
                ("no_attention_skip", ("four_layers",), "mixed", "the skip around attention alone"),
                ("no_ffn_skip", ("four_layers",), "mixed", "the skip around the feed-forward network alone"),
            )
        ),
        *(
            Contrast(
                "residual_removal_fails_deep",
                "catastrophe",
                test=arm,
                base="skips",
                conditions=("copy",),
                prior="inconclusive",
                metric="accuracy",
                better="higher",
            )
            for arm in ("none", "rescaled")
        ),
        *(
            Contrast(
                "residual_small_correction_trained",
                "level",
                test="skips",
                metric=metric,
                margin=0.5,
                conditions=("four_layers", "eight_layers"),
                prior=prior,
                note=note,
            )
            for metric, prior, note in (
                ("largest_write", "refuted", "everywhere: no sublayer adds half of what it is given"),
                ("largest_late_write", "supported", "in the second half of the stack"),
            )
        ),
    ),
    profiles=standard(
        quick={"overrides": {**QUICK, **STEPS}, "test_seeds": 10},
        smoke={"conditions": ("two_layers", "copy")},
        demo={"conditions": ("two_layers",), "arms": ("skips", "none", "shaped")},
    ),
    probes=("writes",),
    matched=("tokens",),
)


def get_config(arm=""):
    return arm_config(ABLATION, arm)
