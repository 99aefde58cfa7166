"""Plugins as alignkit hosts them: found, loaded, called, and checked. Design: docs/architecture.md."""

# What these options of the command line name
plugin_options: dict[str, list[str]] = {"--plugin": [], "--no-plugin": []}
