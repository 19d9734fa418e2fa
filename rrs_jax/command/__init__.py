"""The command `rrs-jax`: one word for each thing to do.

launch.py    run, evaluate, export: the stages of a run, as `python launch.py` does them
words.py     all words, and the modules behind them
"""
