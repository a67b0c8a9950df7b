"""What does the causal mask do: is a language model without it better, or does it only cheat?

    python -m ablations run causal_mask --profile=demo     # about two minutes on two cores, with a verdict and a page
    python train.py --config=configs/ablation_causal_mask.py:no_mask

Without the mask every position sees the token it has to predict, so the training loss falls towards zero. Given only
the past, as when it generates, the same model has learned nothing of use: `prefix_loss` scores each prefix on its own.
`exposure` asks whether a causal model writes worse after its own words than after a true text.
"""

from ablations.profiles import standard
from ablations.schema import Ablation, Arm, Contrast, arm_config

ABLATION = Ablation(
    question="What does the causal mask do: is a language model without it better, or does it only cheat?",
    arms={
        "causal": Arm(note="each position sees itself and the past"),
        "no_mask": Arm({"model.attention.mask": "none"}, note="each position sees the whole window, even its target"),
    },
    contrasts=(
        Contrast("causal_mask_blocks_future", "exact", check="tests/claims/test_causal_mask.py::TestBlocksFuture"),
        Contrast(
            "causal_mask_includes_self",
            "exact",
            prior="refuted",
            check="tests/claims/test_causal_mask.py::TestIncludesSelf",
        ),
        Contrast(
            "teacher_forcing_equals_stepwise",
            "exact",
            check="tests/claims/test_causal_mask.py::TestTeacherForcingEqualsStepwise",
        ),
        Contrast("clm_generates", "exact", check="tests/claims/test_causal_mask.py::TestGenerates"),
        Contrast(
            "jacobian_pattern_by_architecture", "exact", check="tests/claims/test_families.py::TestJacobianPattern"
        ),
        Contrast(
            claim="no_mask_cheating",
            type="superiority",
            test="no_mask",
            base="causal",
            expect="better",
            metric="teacher_forced_loss",
            margin=1.0,
            note="with the future in view the training task is solved by copying",
        ),
        Contrast(
            claim="no_mask_cheating",
            type="level",
            test="no_mask",
            metric="teacher_forced_loss",
            margin=0.1,
            note="solved: less than a tenth of a nat is left",
        ),
        Contrast(
            claim="no_mask_cheating",
            type="superiority",
            test="no_mask",
            base="causal",
            expect="worse",
            metric="prefix_loss",
            margin=1.0,
            note="with the past alone, as in generation, it is worse",
        ),
        Contrast(
            claim="exposure_bias_gap",
            type="level",
            test="causal",
            metric="exposure_gap",
            margin=0.05,
            prior="mixed",
            note="alike: after its own words it writes no worse, by a twentieth of a nat, than after a true text",
        ),
    ),
    profiles=standard(),
    matched=("tokens", "parameters", "flops"),
    probes=("prefix_loss", "exposure"),
)


def get_config(arm=""):
    return arm_config(ABLATION, arm)
