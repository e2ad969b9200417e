"""Real stages, tiny: their data, a trained model to start from, how one is started, and what it leaves.

Shared by the tests here, by tests/faults and tests/test_chat_folder.py, and by the scripts that torchrun starts.
Everything is real: the synthetic data set, the shipped configs with small values on top, the command's own path.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sail_train import train
from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.synth.run import synthesize
from sail_train.data.writer import files_of, write_shards
from sail_train.job.compose import CONFIGS, Configs
from sail_train.job.job import Job, resolve
from sail_train.job.overrides import parse_tokens
from sail_train.job.state import Conduct
from sail_train.types import Conversation, Message, Part

TIMINGS = ("seconds", "tokens_per_s", "time")
"""Fields of a record that no two runs share."""

CONFIGS_TINY = {
    "model/thousands.yaml": """
        defaults: [tiny, _self_]
        vision: {hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2}
        language: {hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 2,
                   num_key_value_heads: 1, head_dim: 16}
        """,
    "stage/tuned.yaml": """
        # @package _global_
        defaults: [override /model: thousands, _self_]
        loop: supervised
        data: {num_streams: 4, batch_rows: 4, micro_batch: 2, seq_length: 128, max_patches: 128,
                     shuffle_buffer: 16, pack_buffer: 8}
        optim: {lr: {vision: 3.0e-3, adapter: 3.0e-3, language: 3.0e-3}}
        schedule: {name: constant}
        eval: {limit: 6, max_new_tokens: 14}
        """,
    "stage/rolled.yaml": """
        # @package _global_
        defaults: [rlvr, override /model: thousands, _self_]
        data:
          num_streams: 4
          sources: {rl: {shards: '${data_dir}/boxed/*.tar'}}
        rl: {think: 'off', prompts_per_step: 4, group_size: 4, mini_batches: 1, epochs: 1, max_new_tokens: 14,
             dynamic_sampling: {max_batches: 6}, overlong: {buffer: 4}, micro_batch_tokens: 256}
        optim: {lr: {vision: 1.0e-3, adapter: 1.0e-3, language: 1.0e-3}}
        schedule: {warmup_steps: 0}
        eval: {limit: 6, max_new_tokens: 14}
        """,
    "stage/sampled.yaml": """
        # @package _global_
        defaults: [harvest, override /model: thousands, _self_]
        data:
          num_streams: 4
          sources: {rl: {shards: '${data_dir}/boxed/*.tar'}}
        sample: {prompts: 16, n: 4, think: 'off', max_new_tokens: 14}
        """,
}
"""Stages of a few ten thousand parameters and short rows, without evaluation; the RL ones are the shipped, shrunk."""

SUPERVISED, RL, SAMPLE = ("stage=tuned",), ("stage=rolled", "~eval.modes"), ("stage=sampled",)

MIXED = (
    "data.sources.read.shards=${data_dir}/train/read/*.tar", "data.sources.read.weight=0.5",
    "data.sources.frames.shards=${data_dir}/train/frames/*.tar", "data.sources.frames.weight=0.2",
    "data.sources.text.shards=${data_dir}/train/text_plain/*.tar", "data.sources.text.weight=0.3",
)  # fmt: skip
"""One image, several images, and text alone."""

EXPERTS = (
    "model.language.model_type=qwen3_moe", "+model.language.num_experts=4", "+model.language.num_experts_per_tok=2",
    "+model.language.moe_intermediate_size=48",
)  # fmt: skip
"""A mixture with experts as wide as the dense model's one MLP."""

_made: dict[str, Path] = {}
"""What a session shares, by name; the fixtures below are imported by more than one conftest."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic data set; in boxed/ its questions with one number for an answer, asking whether it is odd."""
    if "data" not in _made:
        root = tmp_path_factory.mktemp("tiny") / "data"
        synthesize(root, scale=0.02)
        write_shards([in_a_box(sample) for sample in _one_number(root)], root / "boxed", "boxed", 20)
        write_tar(root / "spoilt" / "spoilt.tar", spoilt(root))
        for name, text in CONFIGS_TINY.items():
            path = root.parent / "configs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        _made["data"] = root
    return _made["data"]


@pytest.fixture(scope="session")
def trained(data: Path) -> Path:
    """The run of a model that answers in the right form and is right now and then: what RL and sampling need."""
    if "trained" not in _made:
        run = data.parent / "trained"
        asked = ("data.sources.boxed.shards=${data_dir}/boxed/*.tar", "data.sources.boxed.think_flag=1.0")
        rates = "optim.lr={vision: 5.0e-3, adapter: 5.0e-3, language: 5.0e-3}"
        assert start(data, *SUPERVISED, f"run_dir={run}", *asked, rates, "train.max_steps=60") == 0
        _made["trained"] = run
    return _made["trained"]


def _one_number(root: Path) -> list[Conversation]:
    sources = {name: SourceConfig(shards=f"{root}/train/{name}/*.tar") for name in ("basic", "text_plain")}
    return [sample for sample in held_out(sources) if sample.verifier == "number"]


def in_a_box(sample: Conversation) -> Conversation:
    """Answered by 1 or 0 in a box: a guess in the right form is right half of the time, so that groups are mixed."""
    odd = str(int(sample.answer or "") % 2)
    said = Message(role="assistant", content=(Part(type="text", text=f"\\boxed{{{odd}}}"),))
    return replace(sample, messages=(*sample.prompt, said), answer=odd)


def spoilt(root: Path) -> list[tuple[str, bytes]]:
    """Files of a shard in which every third sample is no conversation."""
    files: list[tuple[str, bytes]] = []
    for number, sample in enumerate(_one_number(root)[:12]):
        content = files_of(in_a_box(sample)).items()
        files += [(f"{number:04d}.{kind}", text.encode() if isinstance(text, str) else text)
                  for kind, text in content if not kind.startswith("__")]  # fmt: skip
        files += [(f"{number:04d}x.json", b'{"messages": 3}')] if number % 3 == 0 else []
    return files


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of exactly these files, by Python's own writer: ours refuses what it could not read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def upcycled(run: Path, root: Path) -> Path:
    """The run's model as a mixture (`EXPERTS`) that computes the same: each expert is the dense MLP."""
    import torch
    from safetensors.torch import save_file

    shutil.copytree(run / "model", root)
    config = json.loads((root / "config.json").read_text())
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
    config["text_config"] |= {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], **mixture}
    (root / "config.json").write_text(json.dumps(config))
    tensors: dict[str, Any] = {}
    for name, tensor in weights(run).items():
        before, mlp, after = name.partition(".mlp.")
        if not (mlp and name.startswith("language_model.")):
            tensors[name] = tensor
            continue
        tensors |= {f"{before}.mlp.experts.{number}.{after}": tensor.clone() for number in range(4)}
        generator = torch.Generator().manual_seed(len(tensors))
        router = torch.randn(4, config["text_config"]["hidden_size"], generator=generator)
        tensors[f"{before}.mlp.gate.weight"] = router / 4
    save_file(tensors, root / "model.safetensors", {"format": "pt"})
    return root


def make_job(data: Path, *tokens: str) -> Job:
    """The job that the command would make of `tokens`."""
    folders = (CONFIGS, data.parent / "configs")
    return resolve(Configs(folders=folders), parse_tokens([f"data_dir={data}", *tokens]))


def start(data: Path, *tokens: str) -> int:
    """Exit code of the command with `tokens`; it stays in the process group, which the tests of a process share.

    Whoever edits the package while the tests run changes its fingerprint, which is not what they are about.
    """
    try:
        job = make_job(data, *tokens)
    except ValueError as error:
        return train.refuse(error)
    return train.run(job, Conduct(explicit=True, ignore_code=True))


def command(data: Path, *tokens: str) -> list[str]:
    """The same as a command for a process of its own."""
    folder = str(data.parent / "configs")
    return [
        sys.executable,
        "-m",
        "sail_train.train",
        "--ignore-code",
        "--config-dir",
        folder,
        f"data_dir={data}",
        *tokens,
    ]


def lines(run: Path, name: str = "metrics") -> list[dict[str, Any]]:
    """The records of one of a run's .jsonl files."""
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def losses(run: Path, name: str = "loss") -> list[float]:
    return [record[name] for record in lines(run) if name in record]


def comparable(run: Path) -> dict[str, list[dict[str, Any]]]:
    """All records that must not depend on interruptions: every .jsonl but the log of events, without timings."""
    return {
        path.stem: [{name: value for name, value in record.items() if name not in TIMINGS} for record in found]
        for path in sorted(run.glob("*.jsonl"))
        if path.stem != "events" and (found := lines(run, path.stem))
    }


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in lines(run, "events") if event["event"] == kind]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def weights(run: Path) -> dict[str, Any]:
    """Tensors of a run's model folder by name."""
    from safetensors.torch import load_file

    files: Sequence[Path] = sorted((run / "model").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
