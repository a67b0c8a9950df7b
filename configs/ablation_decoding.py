"""How does the way of choosing tokens shape a text: temperature, truncation, beams?

    python -m ablations run decoding --profile=smoke     # the exact claims: seconds
    python train.py --config=configs/ablation_decoding.py

What temperature, top-k and top-p do to a distribution is arithmetic, and is proven here. The samplers are fields of
`decode.*`: `eval.py` shows a greedy continuation and one by `decode.sampler`.
"""

from ablations.profiles import standard
from ablations.schema import Ablation, Arm, Contrast, arm_config

ABLATION = Ablation(
    question="How does the way of choosing tokens shape a text: temperature, truncation, beams?",
    arms={"decoder": Arm(note="the reference model; samplers need no training of their own")},
    contrasts=(
        Contrast("temperature_entropy", "exact", check="tests/claims/test_decoding.py::TestTemperatureEntropy"),
        Contrast("topk_topp_semantics", "exact", check="tests/claims/test_decoding.py::TestTruncation"),
    ),
    profiles=standard("smoke"),
)


def get_config(arm=""):
    return arm_config(ABLATION, arm)
