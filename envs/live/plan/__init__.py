"""The plan of a week: who gets which offer through which channel, for whom not, and why (docs/live.md)."""
