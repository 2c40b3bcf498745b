"""A log of decisions that nobody simulates: any context, any actions, columns named in YAML."""
