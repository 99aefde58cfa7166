"""Files that are whole or absent, digests, progress on the terminal."""
