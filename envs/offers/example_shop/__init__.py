"""A made-up shop: customers whose responses follow the world's equations, their life, and the shop's configuration."""
