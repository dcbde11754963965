"""The local stack: broker, Redis, vLLM, worker and trainer as children of one process; no Docker, no GPU, no root."""
