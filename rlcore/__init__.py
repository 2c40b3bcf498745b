"""Learning algorithms on tensors; no code here knows what the tensors stand for."""
