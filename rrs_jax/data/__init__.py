"""Questions and their speech: manifests, the starter set, offline voices."""
