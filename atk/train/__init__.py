"""Trainers: one module per method, and what the methods share."""
