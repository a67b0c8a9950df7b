"""Does a transformer need to be told the positions?

    python -m ablations run no_position --profile=quick
    python train.py --config=configs/ablation_no_position.py:none

Self-attention alone treats its input as a set. A causal mask does not: how many tokens a position may see tells where
it stands. So each family answers for itself: a decoder (`text`, and with a single layer), an encoder that fills gaps,
and two tasks whose only cue is the order of words: who acts in "dog bites man" (`role`), and writing a row backwards.
An encoder learns from the gaps alone, a sixth of its tokens. It gets rows of 32 and a thousand steps: in the 240 steps
on rows of 128 that decoders get, it did not come below the bigram entropy, and nobody could be judged by it. `full` has
tokens enough for rows as long as theirs (`masked_long`).
"""

from ablations.profiles import standard
from ablations.schema import Ablation, Arm, Condition, Contrast, arm_config

ROLE = {
    "data.source": "task",
    "data.task": "role",
    "model.d_model": 32,
    "model.num_layers": 2,
    "train.batch_size": 64,
    "train.steps": 400,
    "train.eval_every": 100,
}
ENCODER = {
    "model.family": "encoder",
    "model.head.kind": "classify",
    "model.head.num_labels": 8,
    "data.task_layout": "label",
}
CHECK = "tests/claims/test_positions.py::"
WORDS = ("role_encoder", "role_decoder", "reverse")

ABLATION = Ablation(
    question="Does a transformer need to be told the positions?",
    arms={
        "rope": Arm(note="queries and keys rotated by their position"),
        "none": Arm({"model.position.kind": "none"}, note="nothing says where a token stands"),
        "learned": Arm(
            {
                "model.position.kind": "learned",
                "model.position.max_length": 0,
                "model.position.out_of_range": "error",
            },
            note="a learned vector for each position, as many as the text has",
        ),
    },
    conditions={
        "text": Condition(note="a decoder of four layers, a language model"),
        "text_one_layer": Condition({"model.num_layers": 1}, note="the same with one layer", arms=("none",)),
        "masked": Condition(
            {
                "model.family": "encoder",
                "objective.kind": "mlm",
                "model.num_layers": 2,
                "data.sequence_length": 32,
                "train.steps": 1000,
                "train.eval_every": 125,
            },
            note="an encoder of two layers that fills gaps in rows of 32 bytes of text, for 1,000 steps; set anew "
            "after a first version, rows of 128 for 240 steps, had not come below the bigram entropy",
            arms=("none",),
        ),
        "masked_long": Condition(
            {"model.family": "encoder", "objective.kind": "mlm", "model.num_layers": 2},
            note="the same with rows and steps as the decoder has them",
            arms=("none",),
        ),
        "role_encoder": Condition(
            {**ROLE, **ENCODER},
            note='an encoder that says who acts in "dog bites man"',
            primary_metric="accuracy",
            positive_control="solved",
        ),
        "role_decoder": Condition(
            ROLE,
            note="a decoder of two layers that says it",
            arms=("none",),
            primary_metric="accuracy",
            positive_control="solved",
        ),
        "reverse": Condition(
            {
                "data.source": "task",
                "data.task": "reverse",
                "data.task_length": 8,
                "model.num_layers": 2,
                "train.batch_size": 64,
                "train.steps": 480,
                "train.eval_every": 120,
            },
            note="a decoder of two layers that writes a row backwards",
            arms=("none",),
            primary_metric="accuracy",
            positive_control="solved",
        ),
    },
    contrasts=(
        Contrast("permutation_equivariance", "exact", check=f"{CHECK}TestPermutationEquivariance"),
        Contrast(
            "permutation_invariance_wording",
            "exact",
            prior="refuted",
            check=f"{CHECK}TestPermutationInvarianceWording",
        ),
        Contrast("bag_of_words_without_pe", "exact", check=f"{CHECK}TestBagOfWordsInEncodersAndOneLayer"),
        Contrast("bag_of_words_without_pe", "exact", prior="refuted", check=f"{CHECK}TestBagOfWordsInDeepDecoders"),
        Contrast(
            "pe_needed",
            "catastrophe",
            test="none",
            base="rope",
            conditions=("text", "text_one_layer", "masked"),
            prior="mixed",
            note="needed: without positions less than a quarter of what is learned is left",
        ),
        Contrast("pe_needed", "catastrophe", test="none", base="rope", conditions=("masked_long",), prior="mixed"),
        Contrast(
            "pe_needed",
            "catastrophe",
            test="none",
            base="rope",
            metric="accuracy",
            better="higher",
            conditions=WORDS,
            prior="mixed",
        ),
        Contrast(
            "pe_needed",
            "superiority",
            test="none",
            base="rope",
            expect="worse",
            margin=0.05,
            conditions=("text",),
            prior="mixed",
            note="in a decoder, a loss of at least 0.05 nats",
        ),
    ),
    profiles=standard(
        smoke={"conditions": ("text", "role_encoder")},
        demo={"conditions": ("role_encoder",)},
        quick={"conditions": ("text", "text_one_layer", "masked", *WORDS)},
        full={"conditions": ("text", "text_one_layer", "masked_long", *WORDS)},
    ),
    matched=("tokens", "flops", "depth"),
    positive_control="bigram",
)


def get_config(arm=""):
    return arm_config(ABLATION, arm)
