"""What a training step costs with each recipe, against `topk_reverse_kl`: head and objective, forward and backward.

    python -m benchmarks.recipes --check
    python -m benchmarks.recipes tip sead many_faces

The vocabulary is Qwen3's; hidden states, views and facts are random. The transformer below the head, which every recipe
pays alike, is left out, so a whole step differs by less. Times are taken in turns.
"""

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks import measure, qwen3
from benchmarks.rows import Bar, Check, JsonFile, Row, conclude
from pipeline.head.gradient import answer_tokens
from pipeline.head.layer import OutputLayer
from pipeline.objectives.inputs import Inputs, Target
from pipeline.objectives.objective import Objective
from pipeline.objectives.outcomes import Outcomes
from pipeline.settings.recipe import Recipe, list_recipes, load_recipe

BASELINE = "topk_reverse_kl"


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Recipes; all without any.")] = None,
    tokens: Annotated[int, typer.Option(help="Response tokens, in rollouts of 64.")] = 256,
    hidden: Annotated[int, typer.Option(help="Width of the hidden states.")] = 1024,
    vocabulary: Annotated[int, typer.Option(help="Rows of the output embedding.")] = qwen3.VOCABULARY,
    k: Annotated[int, typer.Option(help="Ids that each view keeps at a token.")] = 32,
    rounds: Annotated[int, typer.Option(help="Timed turns of each recipe, behind one that is not timed.")] = 3,
    results: JsonFile = None,
    check: Check = False,
) -> None:
    """Time the recipes in turns."""
    torch.manual_seed(0)
    states = torch.randn(tokens, hidden).requires_grad_()
    weight = (0.05 * torch.randn(vocabulary, hidden)).requires_grad_()
    chosen = [BASELINE, *(name for name in names or list_recipes() if name != BASELINE)]
    steps = {name: _step(load_recipe(name), states, weight, k) for name in chosen}
    seconds = measure.seconds(steps, rounds)
    bar = Bar("≤", 1.25)
    rows = [Row(f"a step of {name}: {BASELINE}", "s", seconds[name], seconds[BASELINE], bar) for name in chosen[1:]]
    print(f"{tokens} tokens × hidden {hidden} × vocabulary {vocabulary}, K = {k}, {torch.get_num_threads()} threads\n")
    conclude(rows, results, check)


def _step(recipe: Recipe, states: Tensor, weight: Tensor, k: int) -> Callable[[], None]:
    """Forward and backward pass of one pack."""
    objective = Objective(recipe)
    inputs = _inputs(recipe, len(states), len(weight), k)
    ((_, weighed),) = objective.weigh([(None, inputs)], step=0)  # pyright: ignore[reportArgumentType]

    def run() -> None:
        states.grad = weight.grad = None
        answer = answer_tokens(states, OutputLayer(weight), objective.ask(weighed))
        objective.loss(answer, weighed)[0].backward()

    return run


def _inputs(recipe: Recipe, tokens: int, vocabulary: int, k: int) -> Inputs:
    """Random views and facts. Views that a term composes have the same ids, others ids of their own."""
    composed = any(term.target is not None for term in recipe.terms)
    shared = _ids(tokens, vocabulary, k)
    views = {view: _view(shared if composed else _ids(tokens, vocabulary, k)) for view in recipe.views}
    names = {*recipe.reads, *recipe.derived, *(f"source={source}" for source in recipe.sources)}
    facts = {name: torch.rand(tokens).round() for name in names}
    facts["sampling_logprobs"] = facts["behaviour_logprobs"] = -torch.rand(tokens)
    even = torch.full((tokens,), 1 / tokens)
    lengths = torch.full((max(1, tokens // 64),), min(64, tokens))
    shares = {"token_mean": even, "sequence_mean": even}
    return Inputs(views, lengths, torch.randint(vocabulary, (tokens,)), shares, facts)


def _ids(tokens: int, vocabulary: int, k: int) -> Tensor:
    """Distinct in each row, and all over the vocabulary."""
    return (torch.randint(vocabulary, (tokens, 1)) + torch.arange(k) * (vocabulary // k)) % vocabulary


def _view(ids: Tensor) -> Target:
    tokens, k = ids.shape
    logs = torch.randn(tokens, k + 1).log_softmax(dim=-1)
    own = torch.full((tokens,), k)
    return Target(ids, Outcomes(logs[:, :-1], logs[:, -1]), -torch.rand(tokens), own, torch.rand(tokens))


if __name__ == "__main__":
    typer.run(main)
