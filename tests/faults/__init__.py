"""Faults made on purpose: damaged and hostile files, killed and ended processes, full disks.

`python -m faults` from the folder `tests` does all of it; the tests here do a part of each.
"""
