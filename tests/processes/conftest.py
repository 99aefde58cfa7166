"""The folder with data that several processes learn from."""

from several import work

__all__ = ["work"]
