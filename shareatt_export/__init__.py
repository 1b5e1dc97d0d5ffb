"""Export language models with Shared Attention (arXiv 2407.12866) to GGUF, and run them in llama.cpp."""

__version__ = "0.1.0"
