"""What the scripts share: launching, overrides, what a checkpoint holds, a warm start, and what a run leaves."""
