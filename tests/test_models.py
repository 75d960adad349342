"""Records of models: what of a folder is refused before it is opened, and that nothing in it is run."""

import json
import os
import socket
import subprocess
import sys

import pytest

from pipeline.errors import ModelError, explain_network_error
from pipeline.models.record import Model, read_model, record_model
from pipeline.storage.whole import write_json
from tests import tiny_models


@pytest.fixture
def folder(tmp_path):
    made = tiny_models.bigram(tmp_path / "model")
    (made / "own.py").write_text("")
    return made


@pytest.fixture
def asked(monkeypatch):
    """What transformers asked on the terminal; it is told yes."""
    questions = []
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "y")
    return questions


def change(path, **facts):
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.parametrize("auto_map", [{}, {"auto_map": {"AutoConfig": "own.Config"}}])
def test_an_architecture_that_transformers_does_not_know_is_refused_and_nobody_is_asked(folder, auto_map, asked):
    change(folder / "config.json", model_type="own", **auto_map)
    with pytest.raises(ModelError, match=r"model: its configuration cannot be opened: .*`model_type` \(config\.json\)"):
        record_model(str(folder))
    assert not asked


def test_a_tokenizer_of_a_models_own_code_is_refused_and_nobody_is_asked(folder, asked):
    own = {"AutoTokenizer": ["own.Tokenizer", None]}
    change(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own)
    change(folder / "config.json", model_type="own")
    with pytest.raises(ModelError, match="its tokenizer cannot be opened"):
        Model.load_tokenizer(Model.model_construct(location=str(folder), commit=None))
    assert not asked


def test_a_record_names_the_hash_of_the_weights_as_older_records_do(folder, tmp_path):
    made = record_model(str(folder))
    record = tmp_path / "model.json"
    write_json(record, made.model_dump(mode="json"))
    assert json.loads(record.read_text())["weights"] == made.identity["weights"] == made.weights_hash
    assert read_model(record) == made


def test_a_hub_that_gives_no_answer_is_told_with_the_models_name():
    """In a process of its own: the Hub's address is read when its library is imported."""
    script = "from pipeline.models.record import record_model\nrecord_model('a/b@main')"
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert "a/b@main cannot be looked up on the Hugging Face Hub: the network gives no answer" in done.stderr


def test_a_folder_that_is_not_there_is_told_as_one():
    with pytest.raises(ModelError, match="models/absent: there is no such folder here"):
        record_model("models/absent")


def test_a_pipe_that_breaks_is_no_network():
    """A grader, an engine or a pager that ended raises Python's own ConnectionError."""
    assert explain_network_error(BrokenPipeError()) is None
    assert explain_network_error(ConnectionResetError()) is None
    assert "no answer" in str(explain_network_error(socket.gaierror(-2, "Name or service not known")))
