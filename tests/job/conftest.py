"""A small configs folder of its own, so that these tests do not follow what the shipped configs say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sail_train.job.compose import Configs

FILES = {
    "run.yaml": "defaults:\n  - model: small\n  - data: mine\n  - engine: plain\n  - launcher: local\n  - stage: ???\n  - _self_\n",
    "model/small.yaml": (
        "vision: {hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}\n"
        "language: {hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2,"
        " num_key_value_heads: 1, tokenizer: '${data_dir}/tokenizer'}\n"
    ),
    "model/large.yaml": "defaults: [small]\nvision: {hidden_size: 32}\n",
    "data/mine.yaml": (
        "# @package _global_\ndata_dir: data/mine\n"
        "eval: {suites: {read: {shards: '${data_dir}/eval/*.tar'}}}\ndata: {seq_length: 64}\n"
    ),
    "engine/plain.yaml": "zero_stage: 0\n",
    "engine/two.yaml": "zero_stage: 2\nprecision: bf16\n",
    "launcher/local.yaml": "kind: local\n",
    "stage/first.yaml": (
        "# @package _global_\nloop: supervised\n"
        "data: {sources: {caption: {shards: '${data_dir}/train/*.tar'}}}\n"
        "optim: {lr: {adapter: 1.0e-3}}\ntrain: {max_steps: 7}\neval: {modes: {read: [greedy]}}\n"
    ),
    "stage/second.yaml": "# @package _global_\ndefaults: [first]\ntrain: {max_steps: 9}\n",
    "stage/needy.yaml": "# @package _global_\ndefaults: [first]\nparents: {model: '???'}\n",
    "recipe/two.yaml": (
        "about: Two stages.\noverrides: {train: {save_every: 5}}\n"
        "entries:\n"
        "  - name: first\n    gate: {metric: read/greedy, min: 0.5}\n"
        "  - name: again\n    stage: second\n    parents: {model: first}\n    seed_offset: 10\n"
        "    overrides: [engine=two, train.save_every=6, {optim.lr: {vision: 0.5}}]\n"
        "  - name: reader\n    stage: second\n    parents: {vision: again, language: elsewhere/model}\n"
        "    overrides: {data.sources.caption.shards: '${recipe_dir}/first/shards/*.tar'}\n"
    ),
}


@pytest.fixture
def configs(tmp_path: Path) -> Configs:
    root = tmp_path / "configs"
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Configs(folders=(root,))
