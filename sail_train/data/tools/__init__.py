"""Commands on shards: import foreign data, check shards, look at what the model will see."""

LAYOUTS: dict[str, str] = {
    "preference": "sail_train.data.tools.preference",
    "messages": "sail_train.data.tools.messages",
    "llava": "sail_train.data.tools.llava",
    "sharegpt": "sail_train.data.tools.sharegpt",
    "pairs": "sail_train.data.tools.pairs",
    "alpaca": "sail_train.data.tools.alpaca",
    "problem": "sail_train.data.tools.problem",
}
"""Module whose `matches(record)` and `read(record) -> Imported` know a foreign record, by the layout's name; in the
order in which they are tried."""

RECORD_FILES: dict[str, str] = {
    ".json": "sail_train.data.tools.records_json",
    ".jsonl": "sail_train.data.tools.records_lines",
    ".parquet": "sail_train.data.tools.records_parquet",
    ".tar": "sail_train.data.tools.records_tar",
    "hf:": "sail_train.data.tools.records_hf",
}
"""Module whose `spans(path, size)` and `read(span)` know a kind of input: by a file's suffix, or by the prefix of the
name of a Hugging Face data set."""
