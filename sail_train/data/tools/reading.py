"""What the tools read: every sample of a shard in order, by its place, good or bad."""

from __future__ import annotations

from collections.abc import Iterator

from sail_train.data.config import SourceConfig
from sail_train.data.measure import parsers
from sail_train.data.shard_file import ShardFile
from sail_train.types import BadSample, Conversation


def conversations(shard: str, sample_format: str = "messages") -> Iterator[Conversation | BadSample]:
    """The samples at places 0, 1, ... of a shard, which are the rows of its index too."""
    parse = parsers({"shards": SourceConfig(format=sample_format)})["shards"]
    file = ShardFile(shard, source="shards")
    try:
        index = file.index()
        for place in range(len(index)):
            try:
                sample: Conversation | BadSample = parse(file.sample(index, place))
            except BadSample as error:
                sample = error
            yield sample
    finally:
        file.close()


def all_text(conversation: Conversation) -> str:
    """What everybody says, message by message."""
    return "\n".join(message.text for message in conversation.messages)


def answers(conversation: Conversation) -> list[str]:
    """What the assistant says, turn by turn; none where it says nothing yet."""
    return [message.text for message in conversation.messages if message.role == "assistant"]
