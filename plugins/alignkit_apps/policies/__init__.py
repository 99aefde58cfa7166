"""Policies that a command names: found in runs and folders, opened, asked in turn."""
