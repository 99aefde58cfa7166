"""The folder with data that several processes learn from, and servers like vLLM's."""

from several import work

from tests.processes.vllm_server import serve

__all__ = ["serve", "work"]
