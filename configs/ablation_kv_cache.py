"""Does decoding with stored keys and values change anything?

    python -m ablations run kv_cache --profile=smoke     # the exact claim: under a minute
    python train.py --config=configs/ablation_kv_cache.py
    python train.py --config=configs/ablation_kv_cache.py:one_kv_head

A cache that keeps everything computes exactly what full passes compute, for rows of any lengths. One that forgets
(`decode.cache=sliding` or `sink_window`) computes something else; `python -m benchmarks.decode` measures the speed.
"""

from ablations.profiles import standard
from ablations.schema import Ablation, Arm, Contrast, arm_config

ABLATION = Ablation(
    question="Does decoding with stored keys and values change anything?",
    arms={
        "all_kv_heads": Arm(note="every query head has keys and values of its own"),
        "one_kv_head": Arm({"model.attention.num_kv_heads": 1}, note="one pair for all: the cache shrinks by heads"),
    },
    contrasts=(Contrast("kv_cache_exact", "exact", check="tests/claims/test_decoding.py::TestCacheExact"),),
    profiles=standard("smoke"),
)


def get_config(arm=""):
    return arm_config(ABLATION, arm)
