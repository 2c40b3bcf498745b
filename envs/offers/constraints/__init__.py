"""Contact rules, budgets and their accounts, and the ledger of a running shop.

This module imports nothing, so that a sender of messages can use the ledger without loading PyTorch. The ledger needs
the standard library alone.
"""
