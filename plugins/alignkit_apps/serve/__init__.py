"""Policies that are named on the command line answer: over HTTP, as OpenAI's servers do (docs/architecture.md)."""
