"""Turns a config of TRL, LLaMA-Factory or axolotl into a recipe (docs/migrate.md)."""
