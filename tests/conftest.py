"""One thread a process and the CPU for every test; `--all` adds the slow proofs.

For the tests of what stands above the loops: a small folder of configs and a workplace with a little data, so that
they follow neither what the shipped configs say nor what training does.
"""

from __future__ import annotations

import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from sail_train.job.compose import Configs
from sail_train.loops import LOOPS
from sail_train.loops.config import RunConfig
from sail_train.loops.outcome import Outcome

# Before torch is imported anywhere: it reads these once. Children of a test inherit them.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR": "cpu",
    "WANDB_MODE": "offline",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(name, value)


# A suite that was started in the background has Ctrl-C ignored, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow proofs too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all"):
        return
    slow = pytest.mark.skip(reason="slow: runs with --all")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(slow)


SMALL_CONFIGS = {
    "run.yaml": (
        "defaults: [{model: small}, {data: mine}, {engine: plain}, {launcher: local}, {stage: '???'}, _self_]\n"
    ),
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
    """The small configs, in a folder that a test may change."""
    root = tmp_path / "configs"
    for name, text in SMALL_CONFIGS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Configs(folders=(root,))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory for the test: the shards that the small configs name, and a parent's model."""
    monkeypatch.chdir(tmp_path)
    for path in ("data/mine/train/a.tar", "data/mine/train/b.tar", "data/mine/eval/a.tar"):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 10)
    folder = tmp_path / "parent" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w")
    return tmp_path


@pytest.fixture(scope="session")
def encoded_video(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Makes small films whose frames grow brighter; skips where PyAV is not installed."""

    def make(*, count: int = 30, fps: int = 10, size: tuple[int, int] = (32, 48), kind: str = "mp4") -> bytes:
        av = pytest.importorskip("av")
        np = pytest.importorskip("numpy")
        path = tmp_path_factory.mktemp("video") / f"made.{kind}"
        with av.open(str(path), "w") as made:
            stream = made.add_stream("libvpx" if kind == "webm" else "mpeg4", rate=fps)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            for i in range(count):
                pixels = np.full((*size, 3), 8 * i % 256, dtype=np.uint8)
                made.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            made.mux(stream.encode())
        return path.read_bytes()

    return make


class FakeLoop:
    """Stands in for the supervised loop: what it was given, and how it is to end."""

    def __init__(self) -> None:
        self.configs: list[RunConfig] = []
        self.metrics = {"read/greedy": 0.9, "read/greedy_se": 0.01}
        self.stop_at: str | None = None
        """Name of the run that is asked to stop before its end."""
        self.error: Exception | None = None

    @property
    def trained(self) -> list[str]:
        return [Path(config.run_dir).name for config in self.configs]

    def run(self, config: RunConfig) -> Outcome:
        self.configs.append(config)
        run_dir = Path(config.run_dir)
        (run_dir / "checkpoints" / "step-00000001").mkdir(parents=True, exist_ok=True)
        if self.error is not None:
            raise self.error
        if run_dir.name == self.stop_at:
            return Outcome(status="stopped", steps=1, tokens=10, seconds=1.0)
        (run_dir / "model").mkdir(exist_ok=True)
        (run_dir / "model" / "config.json").write_text("{}")
        weights = f"{config.seed} {config.train.max_steps} {sorted(config.parents)}"
        (run_dir / "model" / "model.safetensors").write_text(weights)
        return Outcome(
            status="finished", steps=config.train.max_steps, tokens=1000, seconds=2.5,
            metrics_before={"read/greedy": 0.1}, metrics_after=self.metrics, model_dir=run_dir / "model",
        )  # fmt: skip


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    """The supervised loop replaced by one that takes no time."""
    fake = FakeLoop()
    module = types.ModuleType("sail_train_fake_loop")
    module.run = fake.run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(LOOPS, "supervised", f"{module.__name__}:run")
    return fake
