"""What RRS can be given beyond the paper, one file a variant."""
