"""Mails: an embedded market with known truth, the user's data, and the models that learn from them."""
