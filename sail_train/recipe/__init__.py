"""A recipe from its first entry to its last: prepare, launch each in order, tell what came out."""
