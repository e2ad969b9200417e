"""Scores a model on held-out conversations: ask (`evaluate`), grade (`grading`), add up (`tally`)."""
