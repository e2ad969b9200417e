#!/usr/bin/env python
"""The data stream against its peers: reading, decoding, packing, the balance of ranks, and resuming.

    scripts/bench/data.py all --peers /tmp/peers          figures of docs/performance.md; some 20 minutes, 2 cores
    scripts/bench/data.py packing balance                 in seconds to minutes
    scripts/bench/data.py reading --toy --no-peers        does it run

Contenders are processes that take turns within one run (`data_rounds`), so that a noisy machine is noisy to all of
them; prints markdown tables of medians with the distance of the quartiles behind. Peers live in an environment of
their own, made on first use in the folder that `--peers` names.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import data_balance
import data_peers_venv
from data_lengths import drawn
from data_made import make
from data_rounds import Contender, Round, play
from data_table import comparison, markdown, spread

SEQ_LENGTH = 4096
PACKED_LENGTH = 8192
SHARES = (0.0, 0.01, 0.5, 0.99)


@dataclass(kw_only=True)
class Options:
    what: list[str]
    peers: str
    no_peers: bool
    data: str
    samples: int
    rounds: int
    toy: bool
    models: list[str]

    def ours(self, name: str, task: str, **options: object) -> Contender:
        return Contender(name=name, python=sys.executable, script="data_ours.py", task=task, options=options)

    def of_peers(self, *peers: tuple[str, str, dict[str, object]]) -> list[Contender]:
        """(name, task, options) of each."""
        if self.no_peers:
            return []
        python = data_peers_venv.python_of(Path(self.peers))
        return [
            Contender(name=name, python=python, script="data_peers.py", task=task, options=options)
            for name, task, options in peers
        ]


def main() -> None:
    options = parse()
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {load:.1f} at the start\n")
    for name in options.what:
        print(f"## {name}\n\n{BENCHMARKS[name](options)}\n", flush=True)


def parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--peers", default="/tmp/sail_train_peers", help="folder of the peers' environment")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--data", default=tempfile.gettempdir() + "/sail_train_bench", help="folder of what is read")
    parser.add_argument("--samples", type=int, default=4000, help="read; 20000 lengths are packed")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--toy", action="store_true", help="a few samples, one round: does it run")
    parser.add_argument("--models", nargs="+", default=["sail_vl2_2b"], help="whose FLOPs balance")
    options = Options(**vars(parser.parse_args()))
    if "all" in options.what:
        options.what = list(BENCHMARKS)
    if options.toy:
        options.samples, options.rounds = 64, 1
    return options


def made(options: Options) -> Path:
    return make(Path(options.data), options.samples, max(16, options.samples // 8))


def reading(options: Options) -> str:
    """CPU time for a sample's bytes, and its state."""
    data = made(options)
    samples, indexed, plain = options.samples, str(data / "indexed"), str(data / "plain")
    told = play(
        [
            options.ours("ours, checksums", "reading", folder=indexed, samples=samples),
            options.ours("ours, checksums by zlib", "reading", folder=indexed, samples=samples, by_zlib=True),
            options.ours("ours, no index", "reading", folder=plain, samples=samples),
            options.ours("ours, checksums, shuffle 256", "reading", folder=indexed, samples=samples, shuffle=256),
            *options.of_peers(
                ("webdataset", "webdataset_reading", {"folder": plain}),
                ("webdataset, shuffle 256", "webdataset_reading", {"folder": plain, "shuffle": 256}),
                ("energon, state", "energon_reading", {"folder": str(data / "energon")}),
                ("energon, no state", "energon_reading", {"folder": str(data / "energon"), "savable": False}),
                ("datasets", "datasets_reading", {"folder": plain}),
                ("tarfile", "tarfile_reading", {"folder": plain}),
            ),
        ],
        options.rounds,
    )
    check_samples(told, samples)
    shuffled = {name: told.pop(name) for name in list(told) if "shuffle" in name}
    return f"{comparison(told, 'ours, checksums', 'cpu')}\n\n{comparison(shuffled, next(iter(shuffled)), 'cpu')}"


def check_samples(told: Mapping[str, Sequence[Round]], samples: int) -> None:
    """Who reads less is no contender."""
    short = {name: rounds[0]["samples"] for name, rounds in told.items() if rounds[0]["samples"] != samples}
    assert not short, f"of {samples} samples some read another number: {short}"


def decoding(options: Options) -> str:
    """Wall clock from shards to rows of tensors, with two workers."""
    data = made(options)
    task = {"folder": str(data / "plain"), "tokenizer": str(data / "tokenizer"), "seq_length": SEQ_LENGTH,
            "rows": 2 if options.toy else 40, "workers": 1 if options.toy else 2}  # fmt: skip
    ours = options.ours("ours", "decoding", **{**task, "folder": str(data / "indexed")})
    peers = [
        (f"webdataset, {name}", "hf_decoding", {**task, "processor": name})
        for name in ("Qwen2VLImageProcessorPil", "SiglipImageProcessorPil")
    ]
    told = play([ours, *options.of_peers(*peers)], options.rounds)
    walls, cpus = comparison(told, "ours", "seconds"), comparison(told, "ours", "cpu")
    return f"{walls}\n\nThe same rounds by CPU time of all processes:\n\n{cpus}"


def packing(options: Options) -> str:
    """Useful tokens of rows of 8k."""
    count = 400 if options.toy else 20_000
    samples, refused = drawn("native", count, seq_length=PACKED_LENGTH, max_patches=4 * PACKED_LENGTH)
    path = Path(options.data) / f"lengths-{count}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"samples": [[one.text, one.tokens - one.text] for one in samples]}
    path.write_text(json.dumps(content | {"patches": [one.patches for one in samples]}))
    task = {"lengths": str(path), "seq_length": PACKED_LENGTH, "max_patches": 4 * PACKED_LENGTH}
    contenders = [
        options.ours(f"ours, {how}, {buffer} candidates{moved}", "packing", **task, how=how, buffer=buffer, moves=moves)
        for how, buffer, moves, moved in (
            ("best_fit", 32, False, ""), ("best_fit", 256, False, ""), ("subset", 32, False, ""),
            ("subset", 256, False, ""), ("subset", 32, True, ", tokens moved"),
        )
    ]  # fmt: skip
    del task["max_patches"]
    told = play([*contenders, *options.of_peers(("TRL, bfd", "trl_packing", task))], options.rounds)
    rows = [
        [name, f"{100 * rounds[0]['useful']:.2f}%", str(rounds[0]["rows"]), str(rounds[0]["lost_tokens"]),
         spread([each["samples"] / each["cpu"] for each in rounds], 0)]
        for name, rounds in told.items()
    ]  # fmt: skip
    table = markdown(["", "useful tokens", "rows", "tokens lost", "samples a CPU second"], rows)
    return f"{count} samples, {refused} longer ones left out for all.\n\n{table}"


def balance(options: Options) -> str:
    """Where 64 ranks wait for each other."""
    return data_balance.report(options.models, 1 if options.toy else 30, PACKED_LENGTH, 4 if options.toy else 64)


def resume(options: Options) -> str:
    """Time to the first batch, by where the data was left."""
    data = made(options)
    shares = list(SHARES)
    last = (options.samples - 1) // 32 * 32 - 32  # a batch must be left
    places = [min(int(share * options.samples) // 32 * 32, last) for share in shares]
    ours = options.ours("ours", "resume", folder=str(data / "indexed"), tokenizer=str(data / "tokenizer"),
                        seq_length=SEQ_LENGTH, shares=shares, samples=options.samples)  # fmt: skip
    plain = options.ours("ours, no index", "resume", folder=str(data / "plain"), tokenizer=str(data / "tokenizer"),
                         seq_length=SEQ_LENGTH, shares=shares, samples=options.samples)  # fmt: skip
    peers = options.of_peers(
        ("webdataset, skipping", "webdataset_resume", {"folder": str(data / "plain"), "places": places}),
        ("energon, bytes alone", "energon_resume", {"folder": str(data / "energon"), "places": places}),
    )
    told = play([ours, plain, *peers], options.rounds * len(shares), warm_up=len(shares))
    rows = []
    for name, rounds in told.items():
        of_place = [rounds[place :: len(shares)] for place in range(len(shares))]
        cells = [spread([1e3 * each["seconds"] for each in of], 0) for of in of_place]
        growth = [spread([of_place[3][i][what] / of_place[1][i][what] for i in range(options.rounds)], 2)
                  for what in ("seconds", "cpu")]  # fmt: skip
        rows.append([name, *cells, *growth])
    header = ["ms to the first batch", *(f"at {100 * share:g}%" for share in shares), "99% / 1%", "by CPU time"]
    return markdown(header, rows)


BENCHMARKS: dict[str, Callable[[Options], str]] = {
    "reading": reading, "decoding": decoding, "packing": packing, "balance": balance, "resume": resume,
}  # fmt: skip

if __name__ == "__main__":
    main()
