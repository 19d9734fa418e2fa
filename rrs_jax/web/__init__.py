"""The style and the parts that every page has."""
