"""Environments to learn from, and the contracts of envs/base.py that they keep. `crm_rl` exports the names."""
