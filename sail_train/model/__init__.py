"""The vision-language model: vision encoder, adapter, language model, and their packed training form."""
