"""Takes a trained stage out of its run: a folder that other programs load, with a model card (docs/architecture.md)."""
