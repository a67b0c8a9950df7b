"""How much of the vector must a norm read: is RMSNorm over the first channels as good as over all of them?

    python -m ablations run partial_rmsnorm --profile=quick     # not run yet
    python train.py --config=configs/ablation_partial_rmsnorm.py:sixteenth

Zhang & Sennrich (2019, section 3.3) take the root mean square over the first 6.25% of the channels and report results
close to RMSNorm. At a width of 64 that is four channels.
"""

from ablations.profiles import standard
from ablations.schema import Ablation, Arm, arm_config


def partial(share: float) -> dict:
    return {"model.norm.kind": "prmsnorm", "model.norm.prmsnorm_share": share}


ABLATION = Ablation(
    question="How much of the vector must RMSNorm read to be as good as when it reads all of it?",
    arms={
        "all": Arm({"model.norm.kind": "rmsnorm"}, note="the statistic over all channels"),
        "half": Arm(partial(0.5), note="over the first half"),
        "sixteenth": Arm(partial(0.0625), note="over the first sixteenth, the share of the paper"),
    },
    matched=("tokens", "parameters", "depth"),
    profiles=standard(),
)


def get_config(arm=""):
    return arm_config(ABLATION, arm)
