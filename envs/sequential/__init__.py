"""The seed's formulation: customers one at a time in each of many parallel worlds, the budget left in sight."""
