from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from sail_train.data.candidate import Candidate
from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.measure import Measure, parsers
from sail_train.data.writer import files_of
from sail_train.processor.processor import SailVLProcessor
from sail_train.types import BadSample, Conversation, Message, Part, RawSample


def candidate(sample: Conversation, *, epoch: int = 0, offset: int = 0) -> Candidate:
    files = {name: content for name, content in files_of(sample).items() if name != "__key__"}
    raw = RawSample(key=sample.key, source="s", shard="x.tar", offset=offset, members=files)
    return Candidate(raw=raw, shard=0, epoch=epoch)


def config(**more: object) -> DataConfig:
    flag = more.pop("think_flag", 0.0)
    return DataConfig(sources={"s": SourceConfig(shards="x.tar", think_flag=flag)}, **more)  # type: ignore[arg-type]


def test_a_sample_is_measured_from_image_headers_alone(processor: SailVLProcessor, make: SimpleNamespace) -> None:
    sample = make.sample(1, images=2, side=56)
    spoilt = Conversation(**{**vars(sample), "images": tuple(image[:-100] for image in sample.images)})
    encoded = Measure(config(), processor, seed=0)(candidate(spoilt))
    assert encoded.grids == ((4, 4), (4, 4)) and encoded.num_patches == 32
    assert tuple(visual.data for visual in encoded.visuals) == spoilt.images


@pytest.mark.parametrize(
    ("limits", "reason"), [({"seq_length": 20}, "too_long"), ({"max_patches": 31}, "too_many_patches")]
)
def test_a_sample_that_fits_no_row_is_refused(
    processor: SailVLProcessor, make: SimpleNamespace, limits: dict[str, int], reason: str
) -> None:
    measure = Measure(config(**limits), processor, seed=0)
    with pytest.raises(BadSample) as caught:
        measure(candidate(make.sample(1, images=2, side=56)))
    assert caught.value.reason == reason and str(next(iter(limits.values()))) in caught.value.detail


def test_flags_are_drawn_by_place_and_epoch_at_the_asked_rate(
    processor: SailVLProcessor, make: SimpleNamespace
) -> None:
    sample = make.sample(1, images=0, mode="direct")
    measure = Measure(config(think_flag=0.3), processor, seed=0)

    def lengths(epoch: int) -> list[int]:
        return [measure(candidate(sample, epoch=epoch, offset=512 * place)).num_tokens for place in range(300)]

    first = lengths(0)
    assert first == lengths(0) != lengths(1)
    assert 0.2 < sum(length > min(first) for length in first) / 300 < 0.4
    always = Measure(config(think_flag=1.0), processor, seed=0)(candidate(sample))
    assert "/no_think" in processor.decode(always.input_ids)


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="data.sources.a.format='mesages' is none of caption, messages; did you mean"):
        parsers({"a": SourceConfig(format="mesages")})


def test_control_tokens_stay_text_while_another_thread_tokenises(
    processor: SailVLProcessor, make: SimpleNamespace
) -> None:
    found: list[bool] = []

    def measure_many(first: int) -> None:
        for number in range(first, first + 400):
            message = Message(role="user", content=(Part(type="text", text=f"{number} " * 20 + "<IMG_CONTEXT>"),))
            asked = Conversation(key="0", source="s", messages=(message,))
            found.append(processor.image_token_id in processor.encode_prompt(asked))

    threads = [threading.Thread(target=measure_many, args=(first,)) for first in (0, 10_000, 20_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1200 and not any(found)
