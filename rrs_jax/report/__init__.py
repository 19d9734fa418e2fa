"""Tables of finished runs. Reads the files of run folders, never live objects."""
