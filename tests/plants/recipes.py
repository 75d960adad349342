"""Bugs in what a recipe says, against its paper's formula, and in what a checkpoint's identity holds of formulas."""

from tests.planting import Plant
from tests.plants.formulas import DERIVED, gradient_of

VERSIONS = "tests/test_versions.py"
PLANTS = [
    Plant(
        "a trust region around the sampler",
        "pipeline.settings.term:Ratio.of",
        '"sampling_logprobs" if self.kind == "importance" else "behaviour_logprobs"',
        '"sampling_logprobs"',
        (gradient_of("stable_opd"), gradient_of("mopd"), gradient_of("kepo")),
    ),
    Plant(
        "a deviation by n",
        "pipeline.training.derived:group_advantage",
        'count - (1 if deviation == "sample" else 0)',
        "count",
        (DERIVED,),
    ),
    Plant(
        "turns that are left out in the denominator",
        "pipeline.objectives.reductions:factors",
        "[_over_response(weight, length) for weight, length in zip(will_count, lengths, strict=True)]",
        "[_over_response(torch.ones_like(weight), length) for weight, length in zip(will_count, lengths, strict=True)]",
        (gradient_of("tcod"), gradient_of("revisiting")),
    ),
    Plant(
        "confidences that do not have mean 1",
        "pipeline.objectives.reductions:factors",
        "tokens * counted / left if left else 0.0",
        "tokens",
        (gradient_of("srpo"),),
    ),
    Plant(
        "an intersection with all ids of a view",
        "pipeline.settings.term:Term.reads_own",
        'self.support == "own" or self.view_top_k is not None',
        'self.support == "own"',
        (gradient_of("many_faces"),),
    ),
    Plant(
        "distillation of the rollouts that failed",
        "pipeline/recipes/kepo.yaml:terms.1.weights.0.fact",
        "correct",
        "wrong",
        (gradient_of("kepo"),),
    ),
    Plant(
        "every formula in every identity",
        "pipeline.objectives.versions:find_formula_versions",
        "{name: family.VERSION for (name, is_used), family in zip(used.items(), families, strict=True) if is_used}",
        "{name: family.VERSION for (name, is_used), family in zip(used.items(), families, strict=True)}",
        (VERSIONS, "-k", "lightning or supervised"),
    ),
    Plant(
        "a family that is forgotten",
        "pipeline.objectives.versions:find_formula_versions",
        'any(term.ratio is not None and term.ratio.kind != "importance" for term in recipe.terms)',
        'any(term.ratio is not None and term.ratio.kind == "two_sided" for term in recipe.terms)',
        (VERSIONS, "-k", "eopd"),
    ),
]
