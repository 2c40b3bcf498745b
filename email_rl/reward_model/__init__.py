"""The reward model: an outcome classifier, its training and refresh, and the choice of a model that may be a reward."""
