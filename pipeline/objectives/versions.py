"""Which families of formulas a recipe uses: a change to one trains only the checkpoints anew that learned by it."""

from pipeline.objectives import (
    divergences,
    estimators,
    ratios,
    reductions,
    supervised,
    targets,
    trust_regions,
    weights,
)
from pipeline.settings.recipe import Recipe
from pipeline.settings.term import Term


def find_formula_versions(recipe: Recipe) -> dict[str, int]:
    """Find the VERSION of each family of formulas that a recipe uses, by the family's name."""
    used = {
        "divergences": any(_has_divergence(term) for term in recipe.terms),
        "estimators": any(_has_estimator(term) for term in recipe.terms),
        "supervised": any(term.estimator == "nll" for term in recipe.terms),
        "ratios": any(term.ratio is not None and term.ratio.kind != "proximal" for term in recipe.terms),
        "trust_regions": any(term.ratio is not None and term.ratio.kind != "importance" for term in recipe.terms),
        "weights": any(term.weights for term in recipe.terms),
        "targets": any(term.target is not None for term in recipe.terms),
        "reductions": len(recipe.sources) > 1 or any(term.has_own_factors for term in recipe.terms),
    }
    families = (divergences, estimators, supervised, ratios, trust_regions, weights, targets, reductions)
    return {name: family.VERSION for (name, is_used), family in zip(used.items(), families, strict=True) if is_used}


def _has_divergence(term: Term) -> bool:
    """Whether one is its loss, its baseline, or what a weight looks at."""
    return term.estimator == "analytic" or term.baseline == "kl" or any(weight.needs_ids for weight in term.weights)


def _has_estimator(term: Term) -> bool:
    """Whether its loss is one of `estimators`: PPO's of a bonus alone is of `trust_regions`."""
    is_proximal = term.ratio is not None and term.ratio.kind == "proximal"
    if term.estimator == "policy_gradient":
        return term.has_target or not is_proximal
    return term.estimator in ("residual", "preference")
