"""What the programs ask of the operating system: processes, and nothing else."""
