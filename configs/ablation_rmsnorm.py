"""Is RMSNorm as good as LayerNorm, and is it cheaper?

    python -m ablations run rmsnorm --profile=quick
    python train.py --config=configs/ablation_rmsnorm.py:rmsnorm
    python -m benchmarks.norm                           # the timing that `rmsnorm_speed` is decided by

LayerNorm subtracts the mean, divides by the standard deviation and scales; RMSNorm only divides and scales. The usual
LayerNorm also adds a bias: it has an arm of its own, since dropping it together with the mean would hide which of the
two mattered. Arms that start from the same weights still end about 0.02 nats apart in a language model, twice the
margin, so equality is also asked of a Markov chain, whose floor every arm comes near.
"""

from ablations.profiles import standard
from ablations.schema import Ablation, Arm, Condition, Contrast, arm_config

ABLATION = Ablation(
    question="Is RMSNorm as good as LayerNorm, and is it cheaper?",
    arms={
        "layernorm": Arm(note="mean and variance, a gain and no bias"),
        "rmsnorm": Arm({"model.norm.kind": "rmsnorm"}, note="root mean square, a gain"),
        "layernorm_bias": Arm({"model.norm.bias": True}, note="mean and variance, a gain and a bias"),
    },
    conditions={
        "text": Condition(note="a language model"),
        "markov": Condition(
            {
                "data.source": "task",
                "data.task": "markov",
                "data.task_length": 64,
                "model.num_layers": 2,
                "train.batch_size": 32,
            },
            note="a Markov chain of order two, two layers",
            arms=("rmsnorm",),
            positive_control="floor",
        ),
    },
    contrasts=(
        Contrast("rmsnorm_quality_equal", "equivalence", test="rmsnorm", base="layernorm", margin=0.01, min_seeds=12),
        Contrast(
            "rmsnorm_quality_equal",
            "equivalence",
            test="rmsnorm",
            base="layernorm_bias",
            margin=0.01,
            min_seeds=12,
            conditions=("text",),
            note="against the usual layer norm, bias included",
        ),
        Contrast("rmsnorm_speed", "formula", check="rmsnorm_speed", prior="refuted"),
        Contrast(
            "rmsnorm_one_fewer_reduction", "exact", check="tests/claims/test_accounting.py::TestRmsnormReductions"
        ),
        Contrast(
            "rmsnorm_unit_variance",
            "exact",
            prior="refuted",
            check="tests/claims/test_normalization.py::TestRmsnormUnitVariance",
        ),
    ),
    profiles=standard(demo={"conditions": ("text",)}, quick={"test_seeds": 12}, full={"test_seeds": 12}),
    matched=("tokens", "parameters", "flops", "depth"),
)


def get_config(arm=""):
    return arm_config(ABLATION, arm)
