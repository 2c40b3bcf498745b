"""Exploration of a contextual bandit: every explorer gives the probabilities from which actions are then drawn."""
