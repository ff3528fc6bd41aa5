"""One module a file format of recorded data."""
