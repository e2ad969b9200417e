"""A recipe's directory as a finished run leaves it, with made-up figures: every file that the report reads."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

PLAN: list[tuple[str, str, dict[str, str], dict[str, list[str]]]] = [
    ("language", "supervised", {}, {"text_read": ["greedy"], "text_think": ["on"]}),
    ("vision", "supervised", {}, {"read": ["greedy"]}),
    ("align", "supervised", {"vision": "vision", "language": "language"}, {"read": ["greedy"]}),
    ("pretrain", "supervised", {"model": "align"}, {"read": ["greedy"], "basic": ["greedy"], "chart": ["greedy"]}),
    ("sft_1", "supervised", {"model": "pretrain"}, {"read": ["greedy"], "basic": ["greedy"]}),
    ("sft_2", "supervised", {"model": "sft_1"}, {"read": ["greedy"], "basic": ["greedy"], "steps": ["greedy"]}),
    ("sft_3", "supervised", {"model": "sft_2"}, {"read": ["greedy"], "basic": ["greedy"], "steps": ["greedy"]}),
    ("sft_4", "supervised", {"model": "sft_3"}, {"read": ["greedy"], "steps": ["greedy"], "frames": ["greedy"]}),
    ("sft_4b", "supervised", {"model": "sft_3"}, {"read": ["greedy"], "steps": ["greedy"], "frames": ["greedy"]}),
    ("soup", "soup", {"member_1": "sft_4", "member_2": "sft_4b"}, {"read": ["greedy"], "steps": ["greedy"]}),
    ("longcot", "supervised", {"model": "soup"}, {"read": ["greedy"], "steps": ["on", "on_t1"]}),
    ("rlvr", "rl", {"model": "longcot"}, {"read": ["greedy"], "steps": ["on", "on_t1"]}),
    ("harvest", "sample", {"model": "rlvr"}, {}),
    ("fusion", "supervised", {"model": "rlvr"}, {"read": ["greedy"], "steps": ["on", "off", "auto", "on_t1"]}),
    ("mixed_rl", "rl", {"model": "fusion"}, {"read": ["greedy"], "steps": ["on", "off", "auto", "on_t1"]}),
]
"""(run, loop, parents, what is evaluated)."""

PARTS = ("vision", "adapter", "language")

LEVEL = {
    "text_read": 0.93,
    "text_think": 0.71,
    "read": 0.78,
    "basic": 0.69,
    "chart": 0.58,
    "steps": 0.41,
    "frames": 0.47,
}


class Maker:
    """Writes the files of one recipe."""

    def __init__(self, root: Path, *, scale: int = 1) -> None:
        """`scale` multiplies steps and prompts: 10 looks like a real run."""
        self.steps = {"rl": 20 * scale, "supervised": 40 * scale}
        self.prompts = 8 * scale
        self.root = root
        self.rng = np.random.default_rng(7)
        self.results: dict[str, dict[str, float]] = {}

    def make(self) -> Path:
        self.root.mkdir(parents=True)
        entries = [self.run(number, *plan) for number, plan in enumerate(PLAN)]
        (self.root / "summary.json").write_text(json.dumps(entries))
        return self.root

    def run(self, number: int, name: str, loop: str, parents: dict[str, str], modes: dict[str, list[str]]) -> Any:
        path = self.root / name
        path.mkdir()
        steps = self.steps.get(loop, 0)
        self._config(path, name, loop, parents, modes, steps)
        self._metrics(path, loop, steps)
        after = self._metrics_of(number, modes)
        before = dict(self.results.get(parents.get("model", ""), {}))
        self.results[name] = after
        passes = {one: {"asked": {}, "metrics": {}, "scores": []} for one in after}
        evaluation = {"before": {"metrics": before, "passes": {}}, "after": {"metrics": after, "passes": passes}}
        if modes:
            (path / "evaluation.json").write_text(json.dumps(evaluation))
        self._samples(path, loop, modes, after)
        self._events(path, modes, after)
        if loop == "soup":
            self._soup(path)
        if name == "pretrain":
            bad = [{"source": "chart", "shard": "c-0.tar", "key": f"k{i}", "reason": "undecodable"} for i in range(3)]
            _lines(path / "quarantine.jsonl", bad)
        return {
            "stage": name,
            "loop": loop,
            "status": "finished",
            "steps": steps,
            "tokens": steps * 2900,
            "seconds": steps * 0.11 + 2,
            "metrics_before": before,
            "metrics_after": after,
            "parent": ", ".join(parents.values()) or None,
            "model_dir": str(path / "model"),
        }

    def _config(self, path: Path, name: str, loop: str, parents: dict[str, str], modes: Any, steps: int) -> None:
        sources: dict[str, Any] = {
            "read": {"shards": "data/tiny/train/read/*.tar", "weight": 0.5},
            "caption": {"shards": "data/tiny/train/caption/*.tar", "weight": 0.3},
            "chart": {"shards": "data/tiny/train/chart/*.tar", "weight": 0.2},
        }
        if name == "fusion":
            sources["thoughts"] = {"shards": f"{self.root}/harvest/shards/*.tar", "weight": 0.1}
        config = {
            "loop": loop,
            "seed": 0,
            "run_dir": str(path),
            "parents": {r: f"{self.root}/{p}" for r, p in parents.items()},
            "data": {"sources": sources if loop != "soup" else {}},
            "train": {"max_steps": max(1, steps)},
            "optim": {"lr": {"adapter": 3e-3} if name == "align" else dict.fromkeys(PARTS, 1e-3) if steps else {}},
            "eval": {"modes": modes},
        }
        (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        lineage = {
            "recipe": "tiny",
            "name": name,
            "stage": name,
            "loop": loop,
            "seed": 0,
            "needs": list(parents.values()) + (["harvest"] if name == "fusion" else []),
            "parents": {
                r: {"path": f"{self.root}/{p}", "model": f"{self.root}/{p}/model", "hash": f"{abs(hash(p)):064x}"}
                for r, p in parents.items()
            },
            "code": {"version": "0.1.0", "hash": "c0de"},
            "data": {},
        }
        (path / "lineage.json").write_text(json.dumps(lineage))

    def _metrics(self, path: Path, loop: str, steps: int) -> None:
        lines: list[dict[str, Any]] = []
        for step in range(1, steps + 1):
            noise, done = float(self.rng.normal()), step / steps
            line: dict[str, Any] = {
                "step": step,
                "grad_norm": 0.4 + 2 * math.exp(-6 * done) + 0.08 * abs(noise),
                "lr/vision": 1e-4 * min(1, step / 30),
                "seconds": 0.11,
                "tokens_per_s": 26000 + 900 * noise,
                "lr/language": 1e-3 * min(1, step / 30) * (0.55 + 0.45 * math.cos(3.1 * done)),
            }
            if loop == "rl":
                answer = 0.45 + 0.38 * (1 - math.exp(-4 * done)) + 0.03 * noise
                line |= {
                    "loss": 0.02 * noise,
                    "rollout/reward": 0.9 * answer + 0.095,
                    "rollout/answer": answer,
                    "rollout/format": min(1.0, 0.9 + 0.1 * done),
                    "rollout/think": 0.6 + 0.25 * done + 0.02 * noise,
                    "rollout/length": 31 + 2 * noise + 4 * done,
                    "rollout/zero_variance": 0.3 + 0.2 * done,
                    "update/entropy": 0.5 * math.exp(-2 * done) + 0.01 * abs(noise),
                    "update/clipped": 0.01 + 0.002 * abs(noise),
                }
            else:
                loss = 0.25 + 2.6 * math.exp(-7 * done) + 0.05 * noise * math.exp(-done)
                line |= {
                    "loss": loss,
                    "loss/read": loss * 0.8,
                    "loss/caption": loss * 1.2,
                    "fill": 0.94 + 0.02 * noise / 3,
                    "samples/read": 25.0,
                    "samples/caption": 16.0,
                    "samples/chart": 9.0,
                }
            lines.append(line)
            if loop == "supervised" and step % (steps // 4) == 0:
                lines.append({"step": step, "valid/loss": 0.3 + 2 * math.exp(-5 * done), "valid/loss/read": 0.2})
        if steps:
            _lines(path / "metrics.jsonl", lines)

    def _metrics_of(self, number: int, modes: dict[str, list[str]]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for suite, asked in modes.items():
            for mode in asked:
                value = LEVEL[suite] + 0.012 * number * (suite == "steps") + float(self.rng.normal(0, 0.015))
                value += {"on": 0.14, "off": 0.0, "auto": 0.03, "on_t1": 0.02}.get(mode, 0.0)
                value += 0.16 * (number in (11, 14) and mode == "on_t1")
                name, thinks = f"{suite}/{mode}", float(mode.startswith("on"))
                metrics |= {
                    name: value,
                    f"{name}_se": math.sqrt(value * (1 - value) / 512),
                    f"{name}_n": 512.0,
                    f"{name}_tokens": 33.2 if thinks else 8.4,
                    f"{name}_truncated": 0.004,
                    f"{name}_thinks": thinks,
                    f"{name}_format": 0.993,
                    f"{name}_failed": 0.0,
                }
                if mode in ("on", "off"):
                    metrics[f"{name}_followed"] = 0.996
                if suite == "read":
                    metrics |= {f"{name}_digits": 0.97, f"{name}_digits_se": 0.003}
            if {"on", "off"} <= set(asked):
                metrics |= {f"{suite}/on_minus_off": 0.143, f"{suite}/on_minus_off_se": 0.021}
        return metrics

    def _samples(self, path: Path, loop: str, modes: dict[str, list[str]], after: dict[str, float]) -> None:
        records: list[dict[str, Any]] = []
        if loop == "rl":
            for step in (19, 20):
                records += [self._rollout(step, number) for number in range(8)]
        for suite, asked in modes.items():
            for mode in asked:
                records += [
                    self._answer(path, suite, mode, index, after[f"{suite}/{mode}"]) for index in range(self.prompts)
                ]
        _lines(path / "samples.jsonl", records)

    def _answer(self, path: Path, suite: str, mode: str, index: int, level: float) -> dict[str, Any]:
        digits = np.random.default_rng(index).integers(0, 10, 9)
        gold = "".join(map(str, digits)) if suite in ("read", "text_read") else str(int(sum(digits) % 17))
        right = bool(self.rng.random() < level)
        answer = gold if right else gold[:-1] + str((int(gold[-1]) + 3) % 10)
        thought = " ".join(map(str, digits)) + "; running total " + " ".join(map(str, np.cumsum(digits)))
        response = f"<think>\n{thought if mode.startswith('on') else ''}\n</think>\n\n\\boxed{{{answer}}}"
        files = []
        if not suite.startswith("text"):
            (path / "eval_images").mkdir(exist_ok=True)
            files = [f"eval_images/{suite}-{index:06d}.0.png"]
            (path / files[0]).write_bytes(digit_grid(digits))
        question = {"read": "Read the grid.", "steps": "What is the sum of all digits, modulo 17?"}.get(
            suite, "What is seen?"
        )
        return {
            "kind": "eval",
            "suite": suite,
            "mode": mode,
            "index": index,
            "sample": 0,
            "key": f"{suite}_{index:06d}",
            "source": suite,
            "images": len(files),
            "prompt": "<image>" * len(files) + question,
            "response": response,
            "gold": gold,
            "verifier": "exact",
            "score": float(right),
            "status": "ok",
            "detail": "",
            "tokens": 33,
            "finish_reason": "stop",
            "truncated": 0.0,
            "thinks": 1.0,
            "followed": None,
            "format": 1.0,
            "digits": None,
            "image_files": files,
        }

    def _rollout(self, step: int, number: int) -> dict[str, Any]:
        right = number % 3 != 0
        parts = {name: {"value": float(right), "status": "ok", "detail": ""} for name in ("answer", "format")}
        return {
            "phase": "rollout",
            "rollout_batch": step,
            "uid": f"{step}/0",
            "source": "rl",
            "key": "rl_000007",
            "think": "on",
            "prompt": "How many digits are larger than 4?",
            "truth": "4",
            "tokens": 30 + number,
            "response": f"<think>\n6 1 8 3 9 0 2 7 4: 1 1 2 2 3 3 3 4 4\n</think>\n\n\\boxed{{{4 if right else 3}}}",
            "finish_reason": "stop",
            "reward": 1.0 if right else 0.1,
            "shaped": 1.0 if right else 0.1,
            "parts": parts,
            "advantage": 0.6 if right else -1.4,
            "masked": False,
            "kept": True,
        }

    def _events(self, path: Path, modes: dict[str, list[str]], after: dict[str, float]) -> None:
        time = "2030-01-01T10:00:00+00:00"
        events: list[dict[str, Any]] = [{"time": time, "event": "start", "world_size": 1}]
        if modes:
            metric = next(f"{suite}/{asked[0]}" for suite, asked in modes.items())
            gate = {"metric": metric, "floor": 0.6, "value": after[metric], "passed": after[metric] >= 0.6}
            events.append({"time": time, "event": "gate", **gate})
        _lines(path / "events.jsonl", events)

    def _soup(self, path: Path) -> None:
        members = {
            "member_1": {"name": "sft_4", "value": 0.574, "se": 0.017},
            "member_2": {"name": "sft_4b", "value": 0.566, "se": 0.017},
        }
        soup = {
            "metrics": ["read/greedy", "steps/greedy"],
            "tolerance_se": 1.0,
            "members": members,
            "floor": 0.553,
            "soup": {"name": "soup", "value": 0.589, "se": 0.017},
            "accepted": True,
            "kept": "soup",
        }
        (path / "soup.json").write_text(json.dumps(soup))


def digit_grid(digits: np.ndarray) -> bytes:
    image = Image.new("L", (84, 84), 245)
    draw = ImageDraw.Draw(image)
    for number, digit in enumerate(digits):
        draw.text((28 * (number % 3) + 9, 28 * (number // 3) + 5), str(digit), fill=10 + 9 * number, font_size=18)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="session")
def finished_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: copy it before changing it."""
    return Maker(tmp_path_factory.mktemp("runs") / "tiny").make()
