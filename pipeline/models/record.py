"""Models by fingerprint: what a name stands for is recorded once, and compared whenever the model is opened.

A record is JSON beside the data (`data/models/teacher.json`); a checkpoint folder carries its own in
`potstill.json`, with the identity that it was trained from.
"""

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import ModelError, damaged, explain_network_error
from pipeline.models.seal import CHECKPOINT, check_checkpoint
from pipeline.models.templates import find_template
from pipeline.storage import hashing
from pipeline.storage.whole import read_json

log = logging.getLogger("models")


class Model(BaseModel):
    """What is known of a model without opening it, as its record on disk says it.

    Attributes:
        name: as the user wrote it, or the checkpoint's folder; for people, never hashed.
        location: a folder, or `owner/name` on the Hub.
        commit: the Hub's commit; None for a folder.
        weights_hash: over the configuration and the weight files; records and identities call it `weights`.
        tokenizer: hash over the mapping of token strings to ids.
        chat_template: hash of the template.
        vocabulary: rows of the output embedding, which may be padded beyond the tokenizer's ids.
        tokens: ids of the tokenizer; log-probabilities are normalised over these, so that two models of one tokenizer
            are over the same ids however each is padded.
        eos_ids: any of them ends a response.
        context: longest sequence in tokens, or None where the model states none.
        parameters: how many, or None where the files do not say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, serialize_by_alias=True)

    name: str
    location: str
    commit: str | None
    weights_hash: str = Field(validation_alias="weights", serialization_alias="weights")
    tokenizer: str
    chat_template: str
    vocabulary: int
    tokens: int
    eos_ids: tuple[int, ...]
    context: int | None
    parameters: int | None

    @property
    def identity(self) -> dict[str, Any]:
        """List what of a model can change a number."""
        return {
            "weights": self.weights_hash,
            "tokenizer": self.tokenizer,
            "chat_template": self.chat_template,
            "eos_ids": list(self.eos_ids),
        }

    def load_tokenizer(self) -> Any:
        """Load the tokenizer of transformers, without remote code."""
        return _tokenizer(self.location, self.commit)

    def check_unchanged(self) -> None:
        """Compare a folder's files with the record; a Hub model's commit says it all.

        Raises:
            ModelError: they changed since.
        """
        if self.commit is None and (found := _folder_weights(Path(self.location))) != self.weights_hash:
            raise ModelError(
                f"{self.location} is not the model that was recorded: its files hash to {found}, recorded is "
                f"{self.weights_hash}. Run `dvc repro models` if the change is meant, else restore the folder."
            )


def record_model(name: str) -> Model:
    """Look a model up: a folder, or `owner/name@revision` on the Hub.

    Raises:
        ModelError: it is not there, lacks a tokenizer or a chat template, or its weights are pickled.
    """
    if Path(name).is_dir():
        return _of_folder(Path(name), name)
    location, _, revision = name.partition("@")
    if location.count("/") != 1 or location.startswith((".", "/")):
        raise ModelError(f"{name}: no such folder, and no `owner/name@revision` of the Hugging Face Hub either.")
    if not revision:
        raise ModelError(
            f"{name}: there is no such folder here. If a model of the Hugging Face Hub is meant, say its revision "
            f"(`{name}@main`, or better a commit): without one, equal settings can mean other weights."
        )
    return _of_hub(name, location, revision)


def read_model(path: Path) -> Model:
    """Read the model that a record (JSON) or a checkpoint folder describes.

    Raises:
        ModelError: the path is missing or describes none.
        ShardError: the record, or a file of the checkpoint, is damaged.
    """
    if path.is_dir():
        check_checkpoint(path)
        return _of_folder(path, str(path))
    if not path.exists():
        raise ModelError(f"{path} is missing. Run `dvc repro models`.")
    try:
        model = Model.model_validate(read_json(path))
    except ValueError:
        raise damaged(path, "is damaged, or no record of a model") from None
    # Its folder is named as it is seen from the project, PROJECT/data/models/NAME.json, which may not be here.
    beside = path.parent.parent.parent / model.location
    is_folder = model.commit is None and not Path(model.location).is_absolute()
    return model.model_copy(update={"location": str(beside)}) if is_folder and beside.is_dir() else model


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint folder says of its own making: identity, teacher of the SFT data, parents.

    Raises:
        ModelError: it does not say.
        ShardError: what it says is damaged.
    """
    if not (folder / CHECKPOINT).is_file():
        raise ModelError(
            f"{folder} has no {CHECKPOINT}: it is no checkpoint of Potstill's. Run `dvc repro sft`, or bring a trained "
            "student with `sft.steps: 0` and `sft.teacher`."
        )
    return read_json(folder / CHECKPOINT)


def check_pair(teacher: Model, student: Model, allow_other_template: bool = False) -> None:
    """Refuse two models that do not speak the same token ids, or are asked in different words.

    Raises:
        ModelError: their tokenizers or chat templates differ.
    """
    if teacher.tokenizer != student.tokenizer:
        raise ModelError(
            f"models.teacher ({teacher.name}, {teacher.tokens} tokens) and models.student ({student.name}, "
            f"{student.tokens} tokens) have different tokenizers: the same id means different text, and every score "
            "would be wrong. Choose a pair of one family."
        )
    if teacher.chat_template != student.chat_template and not allow_other_template:
        raise ModelError(
            f"models.teacher ({teacher.name}) and models.student ({student.name}) have different chat templates: the "
            "teacher would score responses after prompts that it does not know, and what the student learned from its "
            "rollouts stood after others. Give both folders one chat_template.jinja, or accept it with "
            "`models.allow_other_template: true`."
        )
    if missing := sorted(set(teacher.eos_ids) - set(student.eos_ids)):
        log.warning(
            "models.student (%s) does not end a response at token %s, as models.teacher (%s) does: untrained, it may "
            "write past it", student.name, ", ".join(map(str, missing)), teacher.name,
        )  # fmt: skip


def read_config(location: str, commit: str | None) -> Any:
    """Read the configuration of transformers, without remote code.

    Raises:
        ModelError: it cannot be read, or the architecture is none of transformers' own.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(location, revision=commit or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{location}: its configuration cannot be opened: {reason} Potstill runs no code that comes with a model: "
            "choose one whose `model_type` (config.json) the installed transformers knows."
        ) from None


def _of_folder(folder: Path, name: str) -> Model:
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} holds no model: config.json is missing.")
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} has no *.safetensors. Pickled weights are refused; save the model with safetensors."
        )
    if not (folder / "tokenizer_config.json").exists():
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer_config.json). Save the model's tokenizer beside its weights."
        )
    return _described(name, str(folder), None, _folder_weights(folder), read_config(str(folder), None))


def _of_hub(name: str, location: str, revision: str) -> Model:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        info = HfApi().model_info(location, revision=revision, files_metadata=True)
    except Exception as error:
        known = HfHubHTTPError | HFValidationError | OfflineModeIsEnabled | OSError
        reason = str(error).strip().splitlines()[0] if isinstance(error, known) else explain_network_error(error)
        if reason is None:
            raise
        raise ModelError(f"{name} cannot be looked up on the Hugging Face Hub: {reason}") from None
    files = {file.rfilename: (file.lfs.sha256 if file.lfs else file.blob_id) for file in info.siblings or []}
    weights = {file: sha for file, sha in files.items() if file.endswith(".safetensors") or file == "config.json"}
    if not any(file.endswith(".safetensors") for file in weights):
        raise ModelError(f"{name} has no *.safetensors; pickled weights are refused.")
    return _described(name, location, info.sha, hashing.fingerprint(weights), read_config(location, info.sha))


def _described(name: str, location: str, commit: str | None, weights_hash: str, config: Any) -> Model:
    tokenizer = _tokenizer(location, commit)
    template = find_template(tokenizer, name)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{name}: its tokenizer names no end-of-sequence token, so no response could end.")
    text = config.get_text_config()
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if tokens > text.vocab_size:
        raise ModelError(
            f"{name}: its tokenizer has ids up to {tokens - 1}, the model has {text.vocab_size} outputs (config.json): "
            "the tokenizer belongs to another model, or tokens were added without resizing the embeddings."
        )
    return Model(
        name=name,
        location=location,
        commit=commit,
        weights_hash=weights_hash,
        tokenizer=hashing.fingerprint(tokenizer.get_vocab()),
        chat_template=hashing.digest(template),
        vocabulary=text.vocab_size,
        tokens=tokens,
        eos_ids=_eos_ids(location, commit, tokenizer, text),
        context=getattr(text, "max_position_embeddings", None),
        parameters=_parameters(location) if commit is None else None,
    )


def _eos_ids(location: str, commit: str | None, tokenizer: Any, config: Any) -> tuple[int, ...]:
    """Collect the ids that end a response: generation's settings may name several, the tokenizer that of chat turns.

    Raises:
        ModelError: the file of generation's settings cannot be read.
    """
    from transformers.utils.hub import cached_file

    name = "generation_config.json"
    found = cached_file(location, name, revision=commit or "main", _raise_exceptions_for_missing_entries=False)
    try:
        stated = config.eos_token_id if found is None else json.loads(Path(found).read_text()).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{location}: its {name} cannot be read: {str(error).splitlines()[0]}") from None
    listed = stated if isinstance(stated, list) else [] if stated is None else [stated]
    return tuple(sorted({*listed, tokenizer.eos_token_id}))


def _tokenizer(location: str, commit: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(location, revision=commit or "main", trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{location}: its tokenizer cannot be opened: {reason}") from None


def _parameters(location: str) -> int:
    from safetensors import safe_open

    total = 0
    for file in Path(location).glob("*.safetensors"):
        with safe_open(file, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no dict
                size = 1
                for side in tensors.get_slice(name).get_shape():
                    size *= side
                total += size
    return total


def _folder_weights(folder: Path) -> str:
    files = [*folder.glob("*.safetensors"), folder / "config.json"]
    return hashing.fingerprint({file.name: hashing.hash_once(file) for file in files})
