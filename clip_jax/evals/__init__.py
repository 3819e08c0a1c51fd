"""Evaluations: pure metrics, and evaluators made of two embed functions."""
