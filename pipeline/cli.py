"""Look at shards, verify them, and clear up. `dvc repro` runs the pipeline; this only looks at what it made."""

import contextlib
import importlib.metadata
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline import command, project
from pipeline.errors import PotstillError, ShardError

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help=__doc__,
)

OutputFormat = Literal["table", "csv", "json", "markdown"]

DataFolder = Annotated[
    Path, typer.Option("--data", help="The data folder.", default_factory=project.find_data, show_default="data")
]

HomeFolder = Annotated[
    Path,
    typer.Option(
        "--state",
        help="Store and training states.",
        default_factory=project.find_home,
        show_default=".potstill",
    ),
]


def _complete_recipe(beginning: str) -> list[str]:
    from pipeline.settings.recipe import list_recipes

    return [name for name in list_recipes() if name.startswith(beginning)]


def _complete_question(beginning: str) -> list[str]:
    from pipeline.report.questions import list_questions

    return [name for name in list_questions() if name.startswith(beginning)]


def _complete_round(beginning: str) -> list[str]:
    return sorted(path.name for path in (project.find_data() / "rollouts").glob("*") if path.name.startswith(beginning))


def _complete_view(beginning: str) -> list[str]:
    scores = project.find_data() / "scores"
    folders = [*scores.glob("*/teacher"), *scores.glob("*/views/*")]
    return sorted({path.name for path in folders if path.is_dir() and path.name.startswith(beginning)})


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"potstill {importlib.metadata.version('potstill')}")
        raise typer.Exit


@app.callback()
def _take_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    command.silence_libraries()
    command.call_app(app, "potstill", "potstill")


@app.command()
def sql(
    data: DataFolder,
    question: Annotated[
        str | None, typer.Argument(help="A ready question; `--list` lists them.", autocompletion=_complete_question)
    ] = None,
    statement: Annotated[str | None, typer.Option("-c", help="SQL to run; without it, a prompt.")] = None,
    format_: Annotated[
        OutputFormat | None, typer.Option("--format", help="How to write answers. Default: as FILE is named, or table.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the answers there.")] = None,
    lists: Annotated[bool, typer.Option("--list", help="List the ready questions.")] = False,
) -> None:
    """Ask the shards and what was measured in SQL.

    Views: prompts, teacher_rollouts, rollouts, grades, scores, tokens, support, evaluations, metrics, histories,
    validations, drift, timings. Those of rollouts show the latest round in which a rollout occurs; all_rollouts,
    all_grades, all_scores, all_tokens, all_support show every round.
    """
    from pipeline.report.questions import list_questions, read_question

    if lists:
        for name, description in list_questions().items():
            print(f"{name:18} {description}")
        return
    if question is not None and statement is not None:
        raise PotstillError("a ready question and a statement (`-c`) were given: name one of them.")
    text = statement if question is None else read_question(question)
    if text is None and sys.stdin.isatty():
        from pipeline.report.conversation import converse

        converse(data)
        return
    from pipeline.report.formats import choose_format, format_answers, write_answers
    from pipeline.report.sql import Database

    chosen = choose_format(format_, out)
    with Database(data) as database:
        told = format_answers(database, sys.stdin.read() if text is None else text, chosen)
    if out is None:
        print(told, end="")
    else:
        write_answers(out, told, data)


@app.command()
def show(
    data: DataFolder,
    rollout_id: Annotated[str | None, typer.Argument(help="A rollout's id, or how it begins.")] = None,
    prompt: Annotated[str | None, typer.Option(help="A prompt's id, or how it begins: list its rollouts.")] = None,
    round_: Annotated[
        str | None, typer.Option("--round", help="Look in this round alone.", autocompletion=_complete_round)
    ] = None,
    view: Annotated[
        str, typer.Option(help="Whose scores to compare the student with.", autocompletion=_complete_view)
    ] = "teacher",
) -> None:
    """Print a rollout, each token coloured by how teacher and student disagree on it; or a prompt and its rollouts."""
    from pipeline.report.lookup import check_view, find_prompt, find_rollout, list_responses
    from pipeline.report.sql import Database
    from pipeline.report.terminal import print_prompt, print_transcript

    if (rollout_id is None) == (prompt is None):
        raise PotstillError("name either a rollout (`potstill show ID`) or a prompt (`potstill show --prompt ID`).")
    with Database(data) as database:
        if prompt is not None:
            found = find_prompt(database, prompt)
            print_prompt(found, list_responses(database, found["prompt_id"], round_))
            return
        from pipeline.report.decoding import make_decoder
        from pipeline.report.transcript import read_transcript

        if view != "teacher":  # which may have scored nothing yet: the transcript then says so
            check_view(database, view)
        whole_id, of_round = find_rollout(database, str(rollout_id), round_)
        decode = make_decoder(data / "models" / "student.json")
        print_transcript(read_transcript(database, whole_id, of_round, decode, view=view))


@app.command()
def verify(
    data: DataFolder,
    folders: Annotated[list[Path] | None, typer.Argument(help="Default: all of --data.")] = None,
) -> None:
    """Read every file again and compare it with its folder's manifest, a checkpoint's with its record."""
    from pipeline.models.seal import CHECKPOINT, verify_checkpoint
    from pipeline.storage.manifest import MANIFEST, read_manifest, verify_folder, verify_records

    roots = folders or [data]
    chosen = sorted({path.parent for root in roots for path in root.rglob(MANIFEST)})
    checkpoints = sorted({path.parent for root in roots for path in root.rglob(CHECKPOINT)})
    if not chosen and not checkpoints:
        asked = ", ".join(map(str, roots))
        raise PotstillError(
            f"{asked}: no folder with a {MANIFEST}, and no checkpoint. Run `dvc repro` or `dvc pull` first."
        )
    wrong = [sentence for root in roots for sentence in verify_records(root)]
    wrong += [sentence for folder in checkpoints for sentence in verify_checkpoint(folder)]
    files, tokens, size = 0, 0, 0
    for folder in chosen:
        wrong += verify_folder(folder)
        with contextlib.suppress(ShardError):  # told already
            entries = read_manifest(folder).values()
            files += len(entries)
            tokens += sum(entry.tokens for entry in entries)
            size += sum(entry.bytes for entry in entries)
    for sentence in wrong:
        print(sentence)
    if wrong:
        count = "1 file is" if len(wrong) == 1 else f"{len(wrong)} files are"
        raise PotstillError(f"{count} not as they were written, of {files} that manifests list.")
    told = f"{files} files in {len(chosen)} folders, and {len(checkpoints)} checkpoints, are as they were written"
    print(f"{told}: {tokens:,} tokens, {size:,} bytes.")


@app.command()
def repair() -> None:
    """Set aside files of DVC's own that a kill or a power cut left half written, so that `dvc repro` runs again."""
    from pipeline.storage.dvc_files import repair_dvc_files

    told = repair_dvc_files(project.find_project())
    print("\n".join(told or ["DVC can read its own files: there is nothing to repair."]))


@app.command()
def gc(
    data: DataFolder,
    state: HomeFolder,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is listed.")] = False,
    older_than_days: Annotated[float, typer.Option(min=0, help="Spare what is younger.")] = 7.0,
) -> None:
    """List what no output refers to: in the store, half-written files, training states of finished runs.

    A file that DVC's cache still links counts as referred to; `dvc gc` clears that first.
    """
    from pipeline.storage.garbage import DAY_S, find_garbage

    found = find_garbage(data, state, older_than_days * DAY_S, time.time())
    for leftover in found:
        print(f"{leftover.bytes:>15,} bytes  {leftover.paths[0]}  ({leftover.reason})")
        if remove:
            leftover.remove()
    size = sum(leftover.bytes for leftover in found)
    done = "removed" if remove else "may go; `--remove` removes them" if found else "may go"
    print(f"{len(found)} entries, {size:,} bytes {done}.")


@app.command()
def recipes(
    data: DataFolder,
    name: Annotated[
        str | None,
        typer.Argument(help="A recipe to explain; without it, all are listed.", autocompletion=_complete_recipe),
    ] = None,
) -> None:
    """List the objectives that `train.objective` can name, or explain one: its paper, its loss, what it needs."""
    from pipeline.settings.recipe import list_recipes, load_recipe

    if name is None:
        for each in map(load_recipe, list_recipes()):
            print(f"{each.name:26} {each.fidelity.level:8} {each.paper}")
        return
    recipe = load_recipe(name)
    print(f"{recipe.name}: {recipe.paper}\n\n{recipe.description.strip()}\n\nloss: {recipe.equation}")
    print(f"fidelity: {recipe.fidelity.level}. {recipe.fidelity.note}")
    print(f"responses of: {', '.join(recipe.sources)}")
    for view in recipe.views:
        reads = "ids and tails" if view in recipe.exact_views else "the sampled token"
        told = f"; {recipe.needs[view]}" if view in recipe.needs else ""
        print(f"view {view}: {reads}, {_measure_bytes_per_token(data, view)}{told}")
    if recipe.reads:
        print(f"reads: {', '.join(sorted(recipe.reads))}")
    for column, spec in recipe.derived.items():
        print(f"derived column {column}: {_format_pairs(spec.model_dump())}")
    for number, term in enumerate(recipe.terms, 1):
        print(f"term {number}: {_format_pairs(term.model_dump(mode='json', exclude_defaults=True))}")


@app.command()
def schema(
    name: Annotated[Literal["params", "machine"], typer.Argument(help="Which file of settings.")],
) -> None:
    """Write the JSON schema of a file of settings, by which editors complete, explain and check it."""
    from pipeline.settings.schema import write_schema

    print(write_schema(name), end="")


def _format_pairs(pairs: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in pairs.items() if value is not None)


def _measure_bytes_per_token(data: Path, view: str) -> str:
    """Say what a view's scores of the latest round take on this disk."""
    from pipeline.storage.manifest import MANIFEST, read_manifest

    for scores in sorted((data / "scores").glob("*"), key=_find_round_number, reverse=True):
        folder = scores / "teacher" if view == "teacher" else scores / "views" / view
        entries = read_manifest(folder).values() if (folder / MANIFEST).exists() else ()
        if tokens := sum(entry.tokens for entry in entries):
            return f"{sum(entry.bytes for entry in entries) / tokens:.0f} bytes per token in {folder}"
    return f"not in {data / 'scores'} yet"


def _find_round_number(folder: Path) -> int:
    """Give the number in a round's name, as `round_number` in views.sql does: r10 is later than r9."""
    digits = re.search("[0-9]+", folder.name)
    return int(digits[0]) if digits else -1


if __name__ == "__main__":
    main()
