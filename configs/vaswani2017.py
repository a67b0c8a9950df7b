"""The transformer of Vaswani et al. 2017: an encoder-decoder with norms after every addition, sinusoidal positions,
ReLU, and one table, times sqrt(d_model), for source, target and logits.

    python train.py --config=configs/vaswani2017.py                     # 2 + 2 layers, 64 wide: 0.24M parameters
    python train.py --config=configs/vaswani2017.py:transformer_base    # the sizes of the paper; wants an accelerator

Sizes: tiny, and transformer_base and transformer_big of transformer/analysis/presets.py. The tiny one translates
between two made-up languages with a word order and a gender of their own, whose answers are known (data.task):
minutes on two cores, every sentence of the test split right (exact match 1.0, loss 0.0002 nats; one seed).

Shape and formulas are those of the paper, in the layout that tests/golden compares with Hugging Face's Marian, a model
of this design (with biases in attention, which the paper does not mention). The named sizes keep the 37,000 rows of
the paper's joint vocabulary, but translate the same made-up languages until data.source and data.vocabulary say
otherwise (configs/translation.py shows pairs from a file). The named sizes warm up and then fall with the
inverse square root of the step, as in the paper; the tiny one falls by half a cosine. The paper's batches hold 25,000
tokens a side.
"""

from transformer.analysis.presets import VASWANI_STYLE, sized

TASK = {"data.source": "task", "data.task": "translation", "data.task_layout": "pair"}
SIZES = ("transformer_base", "transformer_big")
TINY = {
    **VASWANI_STYLE,
    **TASK,
    "model.num_layers": 2,
    "model.d_model": 64,
    "model.attention.num_heads": 4,
    "data.sequence_length": 20,
    "train.batch_size": 64,
    "train.steps": 1000,
    "train.eval_every": 250,
    "train.checkpoint_every": 500,
    "optimizer.learning_rate": 2e-3,
    "optimizer.warmup_steps": 100,
    "optimizer.beta2": 0.98,
}
# Table 3; the rate is where equation 3 peaks, (512 * 4000) ** -0.5 and (1024 * 4000) ** -0.5.
OF_SIZE = {
    "transformer_base": {"model.dropout": 0.1, "train.steps": 100_000, "optimizer.learning_rate": 7e-4},
    "transformer_big": {"model.dropout": 0.3, "train.steps": 300_000, "optimizer.learning_rate": 4.9e-4},
}
RECIPE = {
    **TASK,
    "objective.label_smoothing": 0.1,
    "train.eval_every": 1000,
    "train.checkpoint_every": 1000,
    "optimizer.warmup_steps": 4000,
    "optimizer.schedule": "inverse_sqrt",
    "optimizer.beta2": 0.98,
    "optimizer.epsilon": 1e-9,
    "optimizer.weight_decay": 0.0,
    "optimizer.clip": 0.0,
}


def get_config(size="tiny"):
    return sized(size, {"tiny": TINY}, SIZES, {**RECIPE, **OF_SIZE.get(size, {})})
