"""The engine `vllm`: servers of vLLM sample, which a run starts itself or finds at addresses (Kwon et al. 2023)."""
