"""Other people's interfaces, both ways; each file needs its package: Gymnasium or Stable-Baselines3."""
