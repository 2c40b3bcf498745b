"""Checks of a twin: its report, warnings about its log and about its fit, its uplift."""
