"""Commands on shards: import foreign data, check shards, look at what the model will see."""
