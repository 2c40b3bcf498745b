"""Offers to customers under a weekly budget."""
