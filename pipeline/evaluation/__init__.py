"""Prediction, metrics, comparison, report."""
