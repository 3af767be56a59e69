"""One file a stage, read top to bottom."""
