"""Where should the norm stand: before the sublayer, after the addition, or nowhere?

python train.py --config=configs/ablation_prenorm.py            # the baseline arm, pre
python train.py --config=configs/ablation_prenorm.py:post
"""

from ablations.schema import Ablation, Arm, arm_config

ABLATION = Ablation(
    question="Does it matter whether layer norm stands before the sublayer, after the addition, or nowhere?",
    arms={
        "pre": Arm(note="x + f(norm(x)), and a norm before the logits"),
        "post": Arm({"model.norm.placement": "post"}, note="norm(x + f(x)), as in the original transformer"),
        "none": Arm({"model.norm.kind": "none"}, note="x + f(x)"),
    },
    matched=("tokens", "depth"),
)


def get_config(arm=""):
    return arm_config(ABLATION, arm)
