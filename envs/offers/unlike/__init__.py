"""Worlds outside the family: their customers respond by other equations than learners, planners and twins assume."""
