"""Hugging Face folders to NNX parameters, and back."""
