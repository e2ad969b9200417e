"""Graders of responses; pure Python, no torch."""
