"""Evaluators with the field's own metrics, baselines and reports."""
