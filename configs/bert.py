"""BERT (Devlin et al. 2019): an encoder that fills in hidden tokens. Post-norm, learned positions, biases everywhere,
token types, a norm on the embedding, and a head with a layer of its own.

    python train.py --config=configs/bert.py                 # 4 layers, 128 wide, bytes: 0.86M parameters
    python train.py --config=configs/bert.py:bert_base       # the sizes of a preset; wants an accelerator

Sizes: tiny, and bert_base and bert_large of transformer/analysis/presets.py. The tiny one hides 15% of 1.0M bytes of
Python's own standard library: 5.9e12 FLOPs, minutes on two cores, validation loss 2.81 nats per hidden byte (one
seed, Python 3.11). The entropy of single bytes is 3.11 and that of bytes after one another 2.33, so this only checks
that all parts train; configs/mlm.py is a model to use.

The model is that of the paper, weight for weight (tests/golden compares it with Hugging Face's). The recipe differs:
masked tokens only, without next-sentence prediction, which is an objective of its own here
(objective.kind=next_sentence with model.head.kind=classify); the paper's corpora are not here, so a named size keeps
the 30,522 rows of its vocabulary but reads the bytes of the default corpus until data.source and data.vocabulary say
otherwise; batches of 32 windows instead of 256 (train.batch_size, train.accumulate). The tiny
one is warmed up for a tenth of its steps, as post-norm needs, and has no dropout, as little text is seen twice.
"""

from transformer.analysis.presets import BERT_STYLE, TINY_RUN, sized

SIZES = ("bert_base", "bert_large")
TINY = {
    **TINY_RUN,
    **BERT_STYLE,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 50,
}
RECIPE = {
    "model.dropout": 0.1,
    "train.steps": 1_000_000,
    "train.eval_every": 1000,
    "train.checkpoint_every": 1000,
    "optimizer.learning_rate": 1e-4,
    "optimizer.warmup_steps": 10_000,
    "optimizer.schedule": "linear",
    "optimizer.final_fraction": 0.0,
    "optimizer.beta2": 0.999,
    "optimizer.epsilon": 1e-6,
    "optimizer.weight_decay": 0.01,
    "optimizer.clip": 1.0,
}


def get_config(size="tiny"):
    return sized(size, {"tiny": TINY}, SIZES, RECIPE)
