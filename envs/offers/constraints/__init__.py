"""What may be sent and spent: contact rules, budgets, and the ledger of a running shop."""

from envs.offers.constraints.budget import Budget
from envs.offers.constraints.budget_account import BudgetAccount
from envs.offers.constraints.budget_rules import BudgetRule, BufferedSpend, ExpectedSpend, ReservedSpend
from envs.offers.constraints.contact_rules import ContactOptions, ContactPolicy, ContactRules
from envs.offers.constraints.ledger import Ledger

__all__ = [
    "Budget",
    "BudgetAccount",
    "BudgetRule",
    "BufferedSpend",
    "ContactOptions",
    "ContactPolicy",
    "ContactRules",
    "ExpectedSpend",
    "Ledger",
    "ReservedSpend",
]
