"""Whole stages on two ranks, all in one launch: torchrun --nproc-per-node 2 two_ranks.py <data> <parent> <root>.

Each stage runs under <root>/<name>; exit codes and tracebacks go to <root>/results-<rank>.json. test_parallel.py runs
the same on one rank and compares.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from loops_tiny import EXPERTS, MIXED, RL, SAMPLE, SUPERVISED, start

from sail_train import dist

FP32 = (0, 1, 2, 3)
"""ZeRO stages, all in fp32: what is compared is the order of summation alone."""

STEPS = 10

MIXTURE = (
    *SUPERVISED, *MIXED, "data.seq_length=80", "data.sources.text.weight=1.5",
    f"train.max_steps={STEPS}", "train.valid_every=5",
    "valid.read.shards=${data_dir}/eval/read/*.tar", "valid.text.shards=${data_dir}/eval/text_plain/*.tar",
)  # fmt: skip
"""Rows so short that some hold images alone, some text alone and some both."""
SPLIT = ("data.micro_batch=1",)
"""On two ranks: four rows are two micro steps of one row each; one rank takes them in one."""

EXCHANGED = (*MIXTURE, *SPLIT, "data.balance=world", "data.prefetch=2")
"""Rows change hands, so that both ranks' micro steps cost alike."""
RESUMED_AT = 5
STOPPED = (*MIXTURE, *SPLIT, f"train.save_every={RESUMED_AT}", "train.keep=9")
"""Has a checkpoint on the way, from which one rank goes on."""

ENDED = (
    *(token for token in MIXTURE if not token.startswith("train.max_steps=")), "train.max_steps=500",
    *(f"data.sources.{name}.epochs=0.3" for name in ("read", "frames", "text")),
)  # fmt: skip
"""The data ends long before, and not on all streams at once."""
EMPTY = tuple(f"data.sources.{name}.epochs=1.0e-9" for name in ("read", "frames", "text"))

ADAPTER = (*SUPERVISED, *MIXED, "train.max_steps=3", "~optim.lr", "optim.lr={adapter: 3.0e-3}")
POLICY = (*RL, "train.max_steps=2", "eval.modes={basic: [greedy, t1]}")

STRONG = (*EXPERTS, "model.language.router_aux_loss_coef=0.5")
"""A mixture whose balance would show in every loss if it depended on the ranks."""
MIXTURE_OF_EXPERTS = (*MIXTURE, *STRONG, "train.valid_every=0", "~valid", "engine.activation_checkpointing=true")
ENDED_POLICY = (
    *RL,
    "train.max_steps=99",
    "data.sources.rl.epochs=1",
    "rl.dynamic_sampling.enable=false",
    "train.save_every=2",
    "train.keep=99",
)
POLICY_OF_EXPERTS = (*POLICY, *STRONG)


def stages(parent: str) -> dict[str, tuple[str, ...]]:
    """Tokens by name; `upcycled` beside the parent is a mixture that computes what the parent does."""
    named = {f"mixture-{stage}": (*MIXTURE, *SPLIT, f"engine.zero_stage={stage}") for stage in FP32}
    named |= {f"policy-{stage}": (*POLICY, f"parent={parent}", f"engine.zero_stage={stage}") for stage in (0, 3)}
    experts = f"parent={Path(parent).with_name('upcycled')}"
    named |= {f"experts-{stage}": (*MIXTURE_OF_EXPERTS, *SPLIT, f"engine.zero_stage={stage}") for stage in (0, 3)}
    named |= {"expert-policy-3": (*POLICY_OF_EXPERTS, experts, "engine.zero_stage=3")}
    named |= {f"exchanged-{stage}": (*EXCHANGED, f"engine.zero_stage={stage}") for stage in (0, 3)}
    named |= {"exchanged-experts": (*MIXTURE_OF_EXPERTS, *SPLIT, "data.balance=node", "engine.zero_stage=3")}
    return named | {
        "stopped": (*STOPPED, "engine.zero_stage=0"),
        "ended": (*ENDED, *SPLIT, "engine.zero_stage=3", "data.balance=world", "data.prefetch=2"),
        "no-data": (*MIXTURE, *EMPTY),
        "ended-policy": (*ENDED_POLICY, f"parent={parent}"),
        "odd-groups": (*MIXTURE, *SPLIT, "data.balance=world", "data.balance_group=3"),
        "adapter-3": (*ADAPTER, *SPLIT, f"parent={parent}", "engine.zero_stage=3"),
        "sampled": (*SAMPLE, "sample.prompts=150", "sample.keep_per_prompt=2", f"parent={parent}"),
        "three-streams": (*MIXTURE, "data.num_streams=3"),
        "odd-prompts": (*POLICY, f"parent={parent}", "rl.prompts_per_step=3"),
    }


def main() -> None:
    data, parent, root = (Path(argument) for argument in sys.argv[1:])
    dist.setup_logging()
    results: dict[str, int | str] = {}
    for name, tokens in stages(str(parent)).items():
        try:
            results[name] = start(data, *tokens, f"run_dir={root / name}")
        except Exception:
            results[name] = traceback.format_exc()
        (root / f"results-{dist.rank()}.json").write_text(json.dumps(results, indent=1))
    dist.shutdown()


if __name__ == "__main__":
    main()
