"""What learns: tensors in, tensors out; nothing here knows what they stand for."""
