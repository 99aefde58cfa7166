"""The page on which people label: `alignkit label`. Its server listens on this machine only (docs/architecture.md).

Starlette and uvicorn are in the extra `label`; modules import them when the page starts.
"""
