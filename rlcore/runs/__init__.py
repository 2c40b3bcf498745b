"""What a run leaves behind: checkpoints, logs, tables and plots, and the check that its numbers are finite."""
