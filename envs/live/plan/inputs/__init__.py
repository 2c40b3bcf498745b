"""What a plan reads: the package and the shop's table, the log of past weeks, and the shop's own rules."""
