"""A running shop.

This module imports nothing, so that a sender of messages can use the ledger without loading PyTorch.
"""
