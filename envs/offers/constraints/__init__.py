"""Contact rules, budgets and their accounts."""
