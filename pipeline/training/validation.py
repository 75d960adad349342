"""The validation KL: how far a student is from the teacher on rows that it is never trained on."""

import math

import torch

from pipeline.errors import DivergedError
from pipeline.models.student import Student
from pipeline.objectives.divergences import reverse_kl
from pipeline.objectives.objective import Objective
from pipeline.objectives.outcomes import Outcomes
from pipeline.settings.machine import Machine
from pipeline.settings.recipe import Recipe
from pipeline.training.rows import Rows

_EVERY_ID = Recipe.model_validate(
    {
        "name": "validation",
        "paper": "",
        "description": "",
        "fidelity": {"level": "full", "note": ""},
        "terms": ({"estimator": "analytic", "divergence": "reverse_kl", "support": "view"},),
    }
)


@torch.no_grad()
def measure_kl(student: Student, rows: Rows, machine: Machine) -> tuple[float, float]:
    """Measure the mean reverse KL to the `teacher` view over all tokens of some rows, without training on them.

    Returns:
        Nats per token, and the student's mean probability on the ids that the view keeps.
    """
    ask, was_training = Objective(_EVERY_ID).ask, student.training
    device = next(student.parameters()).device
    student.eval()
    total = torch.zeros(3, dtype=torch.float64)
    places = rows.sequential()
    for start in range(0, len(places), 256):
        for pack, on_host in rows.batch(places[start : start + 256], machine.train_tokens, layout=student.layout):
            inputs = on_host.to(device)
            answer = student(pack.to(device), ask(inputs))
            outcomes = Outcomes(answer.logprobs, answer.tail)
            distance = reverse_kl(outcomes, inputs.targets["teacher"].outcomes)
            sums = [float(distance.sum()), float(outcomes.mass.sum()), len(distance)]
            total += torch.tensor(sums, dtype=torch.float64)
    student.train(was_training)
    kl, mass = float(total[0] / total[2]), float(total[1] / total[2])
    if not math.isfinite(kl):
        raise DivergedError(
            f"the validation KL over {len(places)} held-out rows is {kl}: the student's weights or the teacher's "
            "scores are no numbers. Run `potstill verify`, and lower the learning rate if the run had begun."
        )
    return kl, mass
