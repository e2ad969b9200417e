"""The batched generator over any of our models."""
