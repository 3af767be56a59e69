"""One file a task: load rows, make prompts and completions, score."""
