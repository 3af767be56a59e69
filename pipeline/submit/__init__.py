"""How stages get to run: plan, sbatch text, Slurm, submitit, local."""
