#!/usr/bin/env python
"""The peers as contenders, run by the Python of their environment: webdataset, megatron-energon, datasets, TRL.

Each is set up as its own documentation has it, in the way that is fastest for it where there are several. Nothing of
ours is imported.
"""

from __future__ import annotations

import copy
import functools
import glob
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_rounds import WAITING, Clock, Round, serve

Run = Callable[[], Round]


def files_in(sample: dict[str, Any]) -> int:
    """Bytes of a sample's files."""
    return sum(len(value) for value in sample.values() if isinstance(value, bytes))


def webdataset_reading(folder: str, shuffle: int = 0) -> Run:
    """All samples as dictionaries of bytes; it has no state to save and checks nothing."""
    import webdataset

    shards = sorted(glob.glob(f"{folder}/*.tar"))

    def run() -> Round:
        pipe = webdataset.WebDataset(shards, shardshuffle=False)
        pipe = pipe.shuffle(shuffle) if shuffle else pipe
        clock, count, size = Clock(), 0, 0
        for sample in pipe:
            count, size = count + 1, size + files_in(sample)
        return clock.told(count, bytes=size)

    return run


def tarfile_reading(folder: str) -> Run:
    """Python's own tarfile as a stream, without grouping files into samples: what webdataset stands on."""
    import tarfile

    shards = sorted(glob.glob(f"{folder}/*.tar"))

    def run() -> Round:
        clock, count, size = Clock(), 0, 0
        for shard in shards:
            with tarfile.open(shard, "r|") as archive:
                for member in archive:
                    file = archive.extractfile(member)
                    assert file is not None
                    count, size = count + member.name.endswith(".json"), size + len(file.read())
        return clock.told(count, bytes=size)

    return run


def datasets_reading(folder: str) -> Run:
    """datasets' webdataset builder, streaming, with images left encoded."""
    import datasets

    shards = sorted(glob.glob(f"{folder}/*.tar"))
    streamed = datasets.load_dataset("webdataset", data_files=shards, split="train", streaming=True)
    streamed = streamed.cast_column("jpg", datasets.Image(decode=False))

    def run() -> Round:
        clock, count, size = Clock(), 0, 0
        for sample in streamed:  # the json comes parsed
            count, size = count + 1, size + len(sample["jpg"]["bytes"])
        return clock.told(count, bytes=size)

    return run


@functools.cache
def energon_folder(folder: str) -> str:
    """Energon's own description of the shards and its indexes of them, made once."""
    from megatron.energon import BaseWebdatasetFactory
    from megatron.energon.epathlib import EPath

    meta = Path(folder) / ".nv-meta"
    if not (meta / "dataset.yaml").exists():
        names = sorted(path.name for path in Path(folder).glob("*.tar"))
        BaseWebdatasetFactory.prepare_dataset(EPath(folder), names, split_parts_ratio=[("train", 1.0)], workers=2)
        (meta / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")
    return folder


def energon_loader(folder: str, *, savable: bool = True, shuffle: int | None = None, batch: int = 32) -> Any:
    """A loader of lists of samples whose files are bytes, without worker processes."""
    from megatron import energon

    @energon.stateless
    def cook(sample: Any) -> Any:
        return sample

    class Bytes(energon.DefaultTaskEncoder):  # type: ignore[misc]
        cookers = [energon.Cooker(cook)]
        decoder = None

        @energon.stateless
        def encode_sample(self, sample: Any) -> Any:
            return sample

        @energon.stateless
        def batch(self, samples: list[Any]) -> Any:
            return samples

        @energon.stateless
        def encode_batch(self, batch: Any) -> Any:
            return batch

    worker_config = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = energon.get_train_dataset(
        energon_folder(folder), worker_config=worker_config, batch_size=batch, shuffle_buffer_size=shuffle,
        max_samples_per_sequence=None, task_encoder=Bytes(), repeat=False,
    )  # fmt: skip
    return energon.get_savable_loader(dataset) if savable else energon.get_loader(dataset)


def energon_reading(folder: str, savable: bool = True, shuffle: int | None = None) -> Run:
    """All samples, the state saved with every batch of 32 where it is savable."""
    energon_folder(folder)

    def run() -> Round:
        clock, count, size = Clock(), 0, 0
        loader = energon_loader(folder, savable=savable, shuffle=shuffle)
        for batch in loader:
            count, size = count + len(batch), size + sum(map(files_in, batch))
            if savable:
                loader.save_state_rank()
        return clock.told(count, bytes=size)

    return run


def hf_decoding(folder: str, tokenizer: str, seq_length: int, processor: str, rows: int, workers: int) -> Run:
    """webdataset -> an image processor of transformers and a tokenizer -> rows packed in the worker -> tensors."""
    import webdataset
    from transformers import PreTrainedTokenizerFast

    prepare = hf_sample(processor, PreTrainedTokenizerFast.from_pretrained(tokenizer))
    shards = sorted(glob.glob(f"{folder}/*.tar"))
    pipe = webdataset.WebDataset(shards, shardshuffle=False).shuffle(256).decode("pilrgb").map(prepare)
    pipe = pipe.compose(functools.partial(packed, seq_length=seq_length)).repeat()
    loader = iter(webdataset.WebLoader(pipe, batch_size=None, num_workers=workers))

    def run() -> Round:
        for _ in range(WAITING):  # those that waited ready
            next(loader)
        clock, count, tokens = Clock(), 0, 0
        for row in islice(loader, rows):
            count, tokens = count + len(row["lengths"]), tokens + len(row["input_ids"])
        return clock.told(count, fill=tokens / rows / seq_length)

    return run


def hf_sample(name: str, tokenizer: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a user of transformers does with a sample: pixel values, ids with placeholders, labels."""
    import torch
    import transformers

    torch.set_num_threads(1)
    native = "Qwen2VL" in name
    # one frame, not a pair of copies, and the same size of image as ours: the least work that it can do
    settings = {"temporal_patch_size": 1} if native else {"size": {"height": 448, "width": 448}}
    images = getattr(transformers, name)(**settings)

    def prepare(sample: dict[str, Any]) -> dict[str, Any]:
        made = images(images=sample["jpg"], return_tensors="pt")
        patches = made["pixel_values"] if native else made["pixel_values"][0]
        count = len(patches) // 4 if native else 256
        user, assistant = (message["content"][-1]["text"] for message in sample["json"]["messages"])
        before = tokenizer("<|im_start|>user\n")["input_ids"] + [3] * count
        before += tokenizer(f"{user}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        after = tokenizer(f"{assistant}<|im_end|>\n")["input_ids"]
        ids, labels = torch.tensor(before + after), torch.tensor([-100] * len(before) + after)
        return {"ids": ids, "labels": labels, "pixels": patches}

    return prepare


def packed(samples: Iterable[dict[str, Any]], seq_length: int) -> Iterator[dict[str, Any]]:
    """Rows filled in order, the cheapest way to pack."""
    row: list[dict[str, Any]] = []
    room = seq_length
    for sample in samples:
        if len(sample["ids"]) > room:
            yield collated(row)
            row, room = [], seq_length
        row.append(sample)
        room -= len(sample["ids"])


def collated(row: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    lengths = [len(sample["ids"]) for sample in row]
    native = row[0]["pixels"].ndim == 2
    pixels = [sample["pixels"] for sample in row]
    return {
        "input_ids": torch.cat([sample["ids"] for sample in row]),
        "labels": torch.cat([sample["labels"] for sample in row]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths]),
        "pixel_values": torch.cat(pixels) if native else torch.stack(pixels),
        "lengths": lengths,
    }


def trl_packing(lengths: str, seq_length: int, strategy: str = "bfd") -> Run:
    """TRL's pack_dataset over a dataset of token ids; of a sample that is too long it drops the rest."""
    import datasets
    from trl import pack_dataset

    datasets.disable_caching()
    datasets.disable_progress_bars()
    counts = [sum(sample) for sample in json.loads(Path(lengths).read_text())["samples"]]
    whole = datasets.Dataset.from_dict({"input_ids": [[1] * count for count in counts]})
    total = sum(counts)

    def run() -> Round:
        clock = Clock()
        rows = pack_dataset(whole, seq_length, strategy)
        told = clock.told(len(counts), rows=len(rows))
        kept = sum(map(len, rows["input_ids"]))
        return {**told, "useful": kept / (len(rows) * seq_length), "lost_tokens": total - kept}

    return run


def webdataset_resume(folder: str, places: list[int]) -> Run:
    """The first batch of 32 after as many samples are skipped: all that it offers."""
    import webdataset

    shards, turn = sorted(glob.glob(f"{folder}/*.tar")), iter(places * 1000)

    def run() -> Round:
        clock, place = Clock(), next(turn)
        read = islice(webdataset.WebDataset(shards, shardshuffle=False), place, place + 32)
        return clock.told(sum(1 for _ in read), place=place)

    return run


def energon_resume(folder: str, places: list[int]) -> Run:
    """The first batch of 32 after a saved state is restored."""
    loader, states, firsts = energon_loader(folder), {}, {}
    # copied, as storing would: what it returns goes on changing while the loader is read
    states[0] = copy.deepcopy(loader.save_state_rank())
    for number, batch in enumerate(loader):
        firsts[32 * number] = batch[0]["__key__"]
        if 32 * (number + 1) in places:
            states[32 * (number + 1)] = copy.deepcopy(loader.save_state_rank())
    turn = iter(places * 1000)

    def run() -> Round:
        clock, place = Clock(), next(turn)
        resumed = energon_loader(folder)
        resumed.restore_state_rank(copy.deepcopy(states[place]))
        batch = next(iter(resumed))
        told = clock.told(len(batch), place=place)
        assert batch[0]["__key__"] == firsts[place], "it goes on where it was"
        return told

    return run


if __name__ == "__main__":
    serve({task.__name__: task for task in (
        webdataset_reading, tarfile_reading, datasets_reading, energon_reading, hf_decoding, trl_packing,
        webdataset_resume, energon_resume,
    )})  # fmt: skip
