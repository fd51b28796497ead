"""Configuration dataclasses, schedules, budgets and the errors of wrong usage."""
