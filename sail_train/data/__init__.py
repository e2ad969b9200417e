"""The stream of packed samples: shards -> mix -> shuffle -> format -> measure -> pack -> deal -> decode -> batch."""

FORMATS: dict[str, str] = {
    "messages": "sail_train.data.conversation",
    "caption": "sail_train.data.caption",
}
"""Module whose `parse(raw) -> Conversation` reads a sample's files, by the name a source gives as its format."""
