"""A step of three rollouts over a vocabulary of seven, as tensors for the library and as numbers for slow loops.

Every view of a recipe, every fact and every derived column is random; the student's outcomes come from the head on an
identity matrix, so its hidden states are its logits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.head.gradient import answer_tokens
from pipeline.head.layer import OutputLayer
from pipeline.objectives.inputs import Inputs, Target
from pipeline.objectives.objective import Objective
from pipeline.objectives.outcomes import Outcomes
from pipeline.settings.reading import Schedule
from pipeline.settings.recipe import Recipe
from pipeline.settings.weights import FirstTokens, HasView
from tests import reference

VOCABULARY = 7
LENGTHS = (4, 3, 1)
"""Tokens of the rollouts of a step; for a recipe with pairs so many follow again: 4 and 3, 1 and 4, 3 and 1 tokens."""
CORRECT = (1.0, 0.0, 1.0)
DOMAINS = ("math", "code", "math")
SEGMENTS = ((0, 0, 1, 2), (0, 1, 1), (0,))
STEP = 30
"""The optimiser step: on the way of every schedule."""
PREFIX = (1.0, 4.0)
"""Tokens that a recipe with a growing prefix shows at its first step, and at its hundredth."""


@dataclass
class Token:
    """What a slow loop may read of one token; log-probabilities are lists over the whole vocabulary."""

    row: int
    place: int
    length: int
    y: int
    p: list[float]
    """The live student: what gradients flow through."""
    s: list[float]
    """The still student: equal numbers where a gradient is stopped."""
    q: dict[str, list[float]]
    ids: dict[str, list[int]]
    own: int
    step: int
    mu: float
    """Log-probability that the sampled token was drawn with."""
    behaviour: float
    """Log-probability of the sampled token under the student that wrote it, at temperature 1."""
    facts: dict[str, float]

    @property
    def entropy(self) -> float:
        return reference.entropy(self.s)


class Case:
    """Random numbers of one seed for one recipe."""

    def __init__(self, recipe: Recipe, seed: int, k: int = 4, padding: int = 0, lengths: Sequence[int] = LENGTHS):
        self.recipe, self.k, self.padding = small(recipe), k, padding
        self.unit = 2 if recipe.is_paired else 1
        self.lengths = tuple(lengths) * self.unit
        random = np.random.default_rng([seed, k])
        count = sum(self.lengths)
        self.row_of = [row for row, length in enumerate(self.lengths) for _ in range(length)]
        self.logits = torch.tensor(2.5 * random.normal(size=(count, VOCABULARY)))
        drawn = {view: 2.5 * random.normal(size=(count, VOCABULARY)) for view in ("teacher", *self.recipe.views)}
        self.q = {view: [reference.log_softmax(row) for row in logits.tolist()] for view, logits in drawn.items()}
        shared = [[int(id_) for id_ in random.permutation(VOCABULARY)[:k]] for _ in range(count)]
        composed = any(term.target is not None for term in self.recipe.terms)
        orders = {view: [random.permutation(ids).tolist() for ids in shared] for view in self.q}
        alone = {
            view: [[int(id_) for id_ in random.permutation(VOCABULARY)[:k]] for _ in range(count)] for view in self.q
        }
        self.ids: dict[str, list[list[int]]] = orders if composed else alone
        self.own = [int(number) for number in random.integers(2, k + 1, count)] if k > 1 else [1] * count
        self.y = [int(id_) for id_ in random.integers(0, VOCABULARY, count)]
        self.mu = [float(number) for number in random.normal(size=count) * 0.3]
        """Log student − log sampling distribution of the sampled tokens."""
        self.wrote = [float(number) for number in random.normal(size=count) * 0.3]
        """Log student − log behaviour of the sampled tokens."""
        self.column = {name: random.uniform(0.4, 1.6, count).tolist() for name in self.recipe.derived}
        self.special = random.integers(0, 2, count).tolist()
        self.has = ([1.0, 0.0, 1.0] if seed == 0 else [1.0, 1.0, 0.0]) * self.unit
        """Whether an optional view has scored a row; the second row is the wrong one."""
        self.skips = any(isinstance(weight, HasView) for term in self.recipe.terms for weight in term.weights)

    def facts(self, token: int, student: Sequence[float]) -> dict[str, float]:
        row = self.row_of[token]
        place = token - self.row_of.index(row)
        found = {
            "correct": CORRECT[row % 3], "finished": 1.0, "special": float(self.special[token]),
            "segments": float(SEGMENTS[row % 3][place % 4 if row % 3 == 0 else place % len(SEGMENTS[row % 3])]),
            "sampling_logprobs": student[self.y[token]] - self.mu[token],
            "behaviour_logprobs": student[self.y[token]] - self.wrote[token],
        }  # fmt: skip
        found |= {f"domain={name}": float(DOMAINS[row % 3] == name) for name in ("math", "code")}
        of_teacher = row % 2 == 0 if self.unit == 2 else row == 2
        found |= {f"source={name}": float(of_teacher == (name == "teacher")) for name in ("student", "teacher")}
        found |= {f"has={view}": self.has[row] for view in self.q}
        return found | {name: values[token] for name, values in self.column.items()}

    def is_scored(self, view: str, token: int) -> bool:
        return not (self.skips and view != "teacher") or self.has[self.row_of[token]] == 1.0

    def inputs(self, rows: Sequence[int] | None = None, step: int = STEP) -> Inputs:
        """What the loader gives of these rows, or of all; shares are those of the whole step."""
        chosen = list(range(len(self.lengths))) if rows is None else list(rows)
        tokens = [token for row in chosen for token, mine in enumerate(self.row_of) if mine == row]
        still = [reference.log_softmax(row) for row in self.logits.tolist()]
        listed = [self.facts(token, still[token]) for token in tokens]
        facts = {name: torch.tensor([each[name] for each in listed], dtype=torch.float64) for name in listed[0]}
        lengths = [self.lengths[row] for row in chosen]
        count = len(self.row_of)
        by_row = [1 / (self.lengths[self.row_of[token]] * len(self.lengths)) for token in tokens]
        shares = {
            "token_mean": torch.full((len(tokens),), 1 / count, dtype=torch.float64),
            "sequence_mean": torch.tensor(by_row, dtype=torch.float64),
        }
        targets = {view: self.target(view, tokens) for view in self.q}
        ids = torch.tensor([self.y[token] for token in tokens])
        return Inputs(targets, torch.tensor(lengths), ids, shares, facts, step=step)

    def target(self, view: str, tokens: Sequence[int]) -> Target:
        width = self.k + self.padding
        ids, logprobs, tails, sampled, entropy = [], [], [], [], []
        for token in tokens:
            q, mine = self.q[view][token], self.ids[view][token]
            if not self.is_scored(view, token):
                ids.append([-1] * width)
                logprobs.append([-math.inf] * width)
                tails.append(0.0)
                sampled.append(0.0)
                entropy.append(0.0)
                continue
            *kept, tail = reference.outcomes(q, mine)
            ids.append(mine + [-1] * self.padding)
            logprobs.append(kept + [-math.inf] * self.padding)
            tails.append(tail)
            sampled.append(q[self.y[token]])
            entropy.append(reference.entropy(q))
        own = torch.tensor([self.own[token] for token in tokens])

        def as_tensor(values: list) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64)

        outcomes = Outcomes(as_tensor(logprobs), as_tensor(tails))
        return Target(torch.tensor(ids), outcomes, as_tensor(sampled), own, as_tensor(entropy))

    def tokens(self, live: Sequence[Sequence[float]] | None = None, step: int = STEP) -> list[Token]:
        """For slow loops: the student as it is, and live logits where given."""
        still = [reference.log_softmax(row) for row in self.logits.tolist()]
        moving = still if live is None else [reference.log_softmax(row) for row in live]
        return [
            Token(
                row=row,
                place=number - self.row_of.index(row),
                length=self.lengths[row],
                y=self.y[number],
                p=moving[number],
                s=still[number],
                q={view: rows[number] for view, rows in self.q.items() if self.is_scored(view, number)},
                ids={view: rows[number] for view, rows in self.ids.items()},
                own=self.own[number],
                step=step,
                mu=still[number][self.y[number]] - self.mu[number],
                behaviour=still[number][self.y[number]] - self.wrote[number],
                facts=self.facts(number, still[number]),
            )
            for number, row in enumerate(self.row_of)
        ]

    def loss(self, logits: torch.Tensor, packs: Sequence[Sequence[int]] = ((0, 1, 2),), step: int = STEP):
        """The recipe's loss of the step, cut into packs of these rows, or of these pairs."""
        objective = Objective(self.recipe)
        packs = [[unit * self.unit + n for unit in units for n in range(self.unit)] for units in packs]
        weighed = objective.weigh([(None, self.inputs(rows, step)) for rows in packs], step)  # pyright: ignore[reportArgumentType]
        total = logits.new_zeros(())
        for rows, (_, inputs) in zip(packs, weighed, strict=True):
            tokens = [token for row in rows for token, mine in enumerate(self.row_of) if mine == row]
            asked = objective.ask(inputs)
            answer = answer_tokens(logits[tokens], OutputLayer(torch.eye(VOCABULARY, dtype=torch.float64)), asked)
            total = total + objective.loss(answer, inputs)[0]
        return total

    def gradient(self, **how) -> torch.Tensor:
        """Gradient of the loss with respect to the student's logits."""
        logits = self.logits.clone().requires_grad_()
        (found,) = torch.autograd.grad(self.loss(logits, **how), logits, allow_unused=True)
        return torch.zeros_like(logits) if found is None else found

    def slow_gradient(self, formula: Callable[[list[Token]], float], step: int = STEP) -> torch.Tensor:
        """Central differences of a slow formula in its live student."""
        found, shift = torch.zeros_like(self.logits), 1e-5
        rows = self.logits.tolist()
        for token in range(len(rows)):
            for id_ in range(VOCABULARY):
                ends = []
                for sign in (1, -1):
                    moved = [list(row) for row in rows]
                    moved[token][id_] += sign * shift
                    ends.append(formula(self.tokens(moved, step)))
                found[token, id_] = (ends[0] - ends[1]) / (2 * shift)
        return found


def small(recipe: Recipe, top_k: int = 3) -> Recipe:
    """The recipe with its prefixes and its numbers of ids cut to what four tokens and seven ids can tell apart."""
    terms = []
    for term in recipe.terms:
        weights = tuple(_short(weight) if isinstance(weight, FirstTokens) else weight for weight in term.weights)
        numbers = {name: top_k if getattr(term, name) else None for name in ("top_k", "view_top_k")}
        terms.append(term.model_copy(update={**numbers, "weights": weights}))
    return recipe.model_copy(update={"terms": tuple(terms)})


def _short(prefix: FirstTokens) -> FirstTokens:
    """That a rollout of four tokens is longer than it."""
    first, last = PREFIX
    return FirstTokens(kind="prefix", tokens=Schedule(start=first, end=last, steps=100))
