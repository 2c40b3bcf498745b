"""What learns: knows tensors, not customers or words."""
