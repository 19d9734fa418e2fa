"""Makers and stand-ins that several test files share; pytest's fixtures stand in conftest.py."""
