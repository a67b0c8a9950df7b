"""Which positions still work on inputs longer than those of training?

    python -m ablations run extrapolation --profile=quick
    python train.py --config=configs/ablation_extrapolation.py:alibi

A language model (`text`) scores the same tokens at the end of windows one, two, four and eight times as long as its
training windows. It can do well there by ignoring what is far away; copying cannot: trained on rows of up to eight
symbols, `copy` is asked for rows of nine to sixteen. The learned table has rows for all of it, of which training visits
the first only, since a table that ends raises an error. The size of `copy` was set with one run each of rope, alibi and
none, whose accuracy on longer rows was known before its comparisons were registered.
"""

from ablations.profiles import standard
from ablations.schema import Ablation, Arm, Condition, Contrast, arm_config

COPY = {
    "data.source": "task",
    "data.task": "copy",
    "data.task_length": 8,
    "data.task_min_length": 1,
    "model.num_layers": 2,
    "train.batch_size": 64,
    "train.steps": 400,
    "train.eval_every": 100,
    "optimizer.weight_decay": 0.0,
}
CHECK = "tests/claims/test_positions.py::"
ON_TEXT = {"conditions": ("text",), "metric": "rise_2x", "margin": 0.05}
COPIES = {"conditions": ("copy",), "metric": "long_accuracy", "better": "higher", "note": "it copies longer rows"}
CLEARLY = {"conditions": ("text",), "metric": "rise_4x", "margin": 0.05, "better": "higher"}


def position(kind):
    return {"model.position.kind": kind}


ABLATION = Ablation(
    question="Which positions still work on inputs longer than those of training?",
    arms={
        "rope": Arm(note="queries and keys rotated by their position"),
        "learned": Arm(
            {**position("learned"), "model.position.max_length": 2048, "model.position.out_of_range": "error"},
            note="a learned vector for each position, far more of them than training visits",
        ),
        "sinusoidal": Arm(
            {**position("sinusoidal"), "model.position.sinusoidal_base": 10_000.0, "model.embedding.scale": 0.0},
            note="a fixed vector of sines and cosines for each position, embeddings times sqrt(d_model) beside it, as "
            "Vaswani et al. (2017) have them",
        ),
        "alibi": Arm(position("alibi"), note="scores fall with the distance"),
        "t5": Arm(
            {**position("t5"), "model.position.t5_buckets": 32, "model.position.t5_max_distance": 128},
            note="a learned bias for each range of distances, the last one open",
        ),
        "none": Arm(position("none"), note="nothing but the causal mask says where a token stands"),
    },
    conditions={
        "text": Condition(note="a language model, in windows up to eight times as long as those of training"),
        "copy": Condition(
            COPY,
            note="one to eight symbols once more, two layers; then nine to sixteen",
            primary_metric="accuracy",
            positive_control="solved",
        ),
    },
    contrasts=(
        Contrast("max_context_not_architectural", "exact", check=f"{CHECK}TestMaxContextNotArchitectural"),
        Contrast("learned_pe_no_extrapolation", "exact", check=f"{CHECK}TestRowsNeverVisitedLearnNothing"),
        Contrast(
            "learned_pe_no_extrapolation",
            "superiority",
            test="learned",
            base="rope",
            expect="worse",
            note="twice the length costs more than with RoPE",
            **ON_TEXT,
        ),
        Contrast(
            "rope_beats_learned_extrapolation",
            "superiority",
            test="rope",
            base="learned",
            expect="better",
            note="twice the length costs less",
            **ON_TEXT,
        ),
        Contrast("rope_extrapolates_well", "level", test="rope", prior="refuted", note="no rise at twice", **ON_TEXT),
        Contrast("rope_extrapolates_well", "level", test="rope", prior="refuted", margin=90.0, **COPIES),
        Contrast(
            "sinusoidal_extrapolates", "level", test="sinusoidal", prior="refuted", note="no rise at twice", **ON_TEXT
        ),
        Contrast("sinusoidal_extrapolates", "level", test="sinusoidal", prior="refuted", margin=90.0, **COPIES),
        Contrast(
            "alibi_extrapolates",
            "level",
            test="alibi",
            metric="rise_8x",
            margin=0.02,
            conditions=("text",),
            note="no rise at eight times",
        ),
        Contrast("alibi_extrapolates", "level", test="alibi", prior="refuted", margin=90.0, **COPIES),
        *(
            Contrast(
                "relative_generalises_better",
                "superiority",
                test=arm,
                base="sinusoidal",
                expect="better",
                margin=2.0,
                prior=prior,
                **COPIES,
            )
            for arm, prior in (("rope", "inconclusive"), ("alibi", "inconclusive"), ("t5", "supported"))
        ),
        *(
            Contrast("context_beyond_window_degrades", "level", test=arm, prior=prior, note="it rises", **CLEARLY)
            for arm, prior in (("rope", "supported"), ("sinusoidal", "supported"), ("alibi", "refuted"))
        ),
    ),
    profiles=standard(demo={"conditions": ("text",), "arms": ("rope", "sinusoidal", "alibi")}),
    probes=("longer_text", "longer_questions"),
    matched=("tokens",),
)


def get_config(arm=""):
    return arm_config(ABLATION, arm)
