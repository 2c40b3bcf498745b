"""Adapters from and to Gymnasium and Stable-Baselines3; each file needs its package."""
