"""Does the lab see an effect that is there?

    python -m ablations run controls --profile=quick
    python train.py --config=configs/ablation_controls.py:half_width

A model of half the width must come out as worse, or the lab could not be believed where it finds nothing. The other
half, that two models which differ in chance alone come out as equal, is measured with every baseline: its twins.

The twins of this baseline, which four other questions share, failed that control once: -0.0072 nats per token
[-0.0129, -0.0015] over 150 pairs. No cause was found. So it was repeated on seeds of its own, the number of pairs fixed
before the first was trained: -0.0004 [-0.0075, +0.0067] over 110. What stands in the table of controls is all 260
together, -0.0043 [-0.0088, +0.0001]; the repetition alone is what speaks against a difference.
"""

from ablations.profiles import standard
from ablations.schema import Ablation, Arm, Contrast, arm_config

ABLATION = Ablation(
    question="Does the lab see an effect that is there?",
    arms={
        "full_width": Arm(note="the reference model"),
        "half_width": Arm({"model.d_model": 32, "model.attention.num_heads": 2}, note="32 wide, two heads"),
    },
    contrasts=(
        Contrast(
            "halved_width_is_detected",
            "superiority",
            test="half_width",
            base="full_width",
            expect="worse",
            note="A model of half the width is worse.",
        ),
    ),
    profiles=standard("quick"),
    matched=("tokens", "depth"),
)


def get_config(arm=""):
    return arm_config(ABLATION, arm)
