"""Ready questions: statements by name in `cookbook/`, each beginning with a line that says what it asks."""

from pathlib import Path

from pipeline.errors import PotstillError, suggest

_FOLDER = Path(__file__).with_name("cookbook")


def list_questions() -> dict[str, str]:
    """List the names of the ready questions, each with the sentence that says what it asks."""
    return {path.stem: _read_first_line(path) for path in sorted(_FOLDER.glob("*.sql"))}


def read_question(name: str) -> str:
    """Read the statement of a ready question.

    Raises:
        PotstillError: there is none of this name.
    """
    if name not in list_questions():
        raise PotstillError(
            f"there is no question `{name}`; {suggest(name, list_questions())}\n"
            "`potstill sql --list` explains each; a statement of your own comes behind `-c`."
        )
    return (_FOLDER / f"{name}.sql").read_text()


def _read_first_line(path: Path) -> str:
    with path.open() as file:
        return file.readline().removeprefix("--").strip()
