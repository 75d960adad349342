"""A model's output layer, read from its files alone: what the head needs where another library runs the transformer."""

from pathlib import Path

import torch

from pipeline.errors import EngineError
from pipeline.head.layer import OutputLayer, logit_scale
from pipeline.models.record import Model, read_config

_UNTIED = ("lm_head.weight", "embed_out.weight")

_TIED = ("embed_tokens.weight", "wte.weight", "embed_in.weight")


def load_output_layer(model: Model, device: torch.device) -> OutputLayer:
    """Read the output layer in float32: its rows of the tokenizer's ids, without the padding behind them.

    Raises:
        EngineError: the files hold no plain matrix of the model's vocabulary, as where the layer is quantised.
    """
    from safetensors import safe_open

    config = read_config(model.location, model.commit).get_text_config()
    endings = _TIED if config.tie_word_embeddings else (*_UNTIED, "lm_head.bias", "embed_out.bias")
    found: dict[str, torch.Tensor] = {}
    for file in sorted(_folder(model).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no dict
                if name.endswith(endings):
                    found[name] = tensors.get_tensor(name)
    weights = [tensor for tensor in found.values() if tensor.ndim == 2]
    biases = [tensor for tensor in found.values() if tensor.ndim == 1]
    if len(weights) != 1 or len(weights[0]) != model.vocabulary or not weights[0].is_floating_point():
        shapes = {name: list(tensor.shape) for name, tensor in found.items()}
        raise EngineError(
            f"{model.name}: one output matrix with {model.vocabulary} rows is expected in its *.safetensors, found "
            f"{shapes or 'none'}. Score it by vLLM's own log-probabilities instead: `hidden_states: false`."
        )
    return OutputLayer(
        weights[0][: model.tokens].to(device, torch.float32),
        biases[0][: model.tokens].to(device, torch.float32) if biases else None,
        logit_scale(config),
        getattr(config, "final_logit_softcapping", None),
    )


def _folder(model: Model) -> Path:
    if model.commit is None:
        return Path(model.location)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model.location, revision=model.commit, allow_patterns=["*.safetensors"]))
