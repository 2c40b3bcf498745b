"""Contact rules, budgets and their accounts, and the ledger of a running shop.

Nothing is imported here, so that a sender of messages can use the ledger, which needs the standard library alone,
without loading PyTorch.
"""
