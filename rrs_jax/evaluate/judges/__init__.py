"""Judges: what a response is."""
