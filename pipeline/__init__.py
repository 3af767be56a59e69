"""RLcausality: SFT and GRPO of language models on causal reasoning, as a DAG of Slurm jobs."""
