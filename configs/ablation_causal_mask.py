"""What does the causal mask do: is a language model without it better, or does it only cheat?

    python -m ablations run causal_mask --profile=demo     # about two minutes on two cores, with a verdict and a page
    python train.py --config=configs/ablation_causal_mask.py:no_mask

Without the mask every position sees the token it has to predict, so the training loss falls towards zero. Given only the
past, as when it generates, the same model has learned nothing of use: `prefix_loss` scores each prefix on its own.
"""

from ablations.schema import Ablation, Arm, Contrast, Profile, arm_config

TINY = {
    "model.d_model": 32,
    "model.num_layers": 2,
    "model.attention.num_heads": 2,
    "data.sequence_length": 32,
    "train.batch_size": 16,
    "train.log_every": 10,
    "eval.tokens": 4096,
}

ABLATION = Ablation(
    question="What does the causal mask do: is a language model without it better, or does it only cheat?",
    arms={
        "causal": Arm(note="each position sees itself and the past"),
        "no_mask": Arm({"model.attention.mask": "none"}, note="each position sees the whole window, its target included"),
    },
    contrasts=(
        Contrast(
            claim="no_mask_cheating",
            type="superiority",
            test="no_mask",
            base="causal",
            expect="better",
            metric="teacher_forced_loss",
            margin=0.1,
            min_seeds=6,
            note="with the future in view the training task is solved by copying",
        ),
        Contrast(
            claim="no_mask_cheating",
            type="superiority",
            test="no_mask",
            base="causal",
            expect="worse",
            metric="prefix_loss",
            margin=0.1,
            min_seeds=6,
            note="with the past alone, as in generation, it is worse",
        ),
    ),
    profiles={
        "smoke": Profile({**TINY, "train.steps": 10}, learning_rates=(3e-3,), test_seeds=2, verdicts=False),
        "demo": Profile(
            {**TINY, "train.steps": 300, "train.eval_every": 100, "train.checkpoint_every": 0},
            learning_rates=(3e-3, 1e-2),
            tuning_seeds=1,
            test_seeds=6,
        ),
    },
    matched=("tokens", "parameters", "flops"),
    probes=("prefix_loss",),
    positive_control="unigram",
)


def get_config(arm=""):
    return arm_config(ABLATION, arm)
