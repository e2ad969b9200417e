"""Commands on shards: import foreign data, check shards, look at what the model will see."""

LAYOUTS: dict[str, str] = {
    "llava": "sail_train.data.tools.llava",
    "messages": "sail_train.data.tools.messages",
}
"""Module whose `matches(record)` and `read(record) -> Imported` know a foreign record, by the layout's name."""
