"""Reward functions composed from task scores."""
