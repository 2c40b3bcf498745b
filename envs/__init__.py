"""Environments, and the contracts that they keep (envs/base.py). `crm_rl` exports the names."""
