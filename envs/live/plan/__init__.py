"""The plan of a week: who gets which offer through which channel, who gets nothing, and why (docs/live.md)."""
