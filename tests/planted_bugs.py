"""Bugs that the tests must find: each is planted into a copy of the code, and the tests named with it must then fail.

    python -m tests.planted_bugs [NAME ...]   # plant all, or those named
    python -m tests.planted_bugs --list       # say which fit the code as it is, and why the others do not

Run it for a formula that you touched; `make plants` runs all. A plant that survives is a test that is missing.
"""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.planting import Plant, UnplantableError, change, survives

PROCESSES = 2


def gradient_of(recipe: str) -> str:
    """Name the formula test of a recipe's gradient."""
    return f"tests/test_formulas.py::test_a_recipe_has_the_gradient_of_its_formula[{recipe}]"


def value_of(recipe: str) -> str:
    """Name the formula test of a recipe's value, where a gradient would not tell."""
    return f"tests/test_formulas.py::test_a_recipe_has_the_value_of_its_formula[{recipe}-0]"


DERIVED = "tests/test_derived.py"
PLANTS = [
    Plant(
        "direction swapped",
        "pipeline.objectives.divergences:reverse_kl",
        "log_p.exp() * (log_p - log_q)",
        "log_q.exp() * (log_q - log_p)",
        (gradient_of("topk_reverse_kl"),),
    ),
    Plant(
        "cross-entropy for KL",
        "pipeline.objectives.divergences:forward_kl",
        "log_q.exp() * (log_q - log_p)",
        "log_q.exp() * (-log_p)",
        (value_of("topk_forward_kl"),),
    ),
    Plant(
        "JSD not scaled",
        "pipeline.objectives.divergences:jsd",
        "log_q.exp() * (log_q - log_m) / (1 - beta)",
        "log_q.exp() * (log_q - log_m)",
        (gradient_of("gkd"),),
    ),
    Plant(
        "β on the wrong side",
        "pipeline.objectives.divergences:jsd",
        "[beta, 1 - beta]",
        "[1 - beta, beta / 2]",
        (gradient_of("gkd"),),
    ),
    Plant(
        "detach on the weight",
        "pipeline.objectives.divergences:stop_gradient_reverse_kl",
        "log_p.exp() * (log_p - log_q).detach()",
        "log_p.exp().detach() * (log_p - log_q)",
        (gradient_of("many_faces_stop_gradient"),),
    ),
    Plant(
        "detach forgotten",
        "pipeline.objectives.divergences:stop_gradient_reverse_kl",
        "log_p.exp() * (log_p - log_q).detach()",
        "log_p.exp() * (log_p - log_q)",
        (gradient_of("many_faces_stop_gradient"),),
    ),
    Plant(
        "tail in the sum over ids",
        "pipeline.objectives.divergences:stop_gradient_reverse_kl",
        "exists.shape[-1] - 1",
        "exists.shape[-1]",
        (gradient_of("many_faces_stop_gradient"),),
    ),
    Plant(
        "tail dropped on restriction",
        "pipeline.objectives.outcomes:restricted",
        "logsumexp(torch.cat([left_out, outcomes.tail.unsqueeze(-1)], dim=-1))",
        "outcomes.tail",
        (value_of("mad_opd"),),
    ),
    Plant(
        "student's mass not a constant",
        "pipeline.objectives.divergences:student_weighted_reverse_kl",
        "student.mass.detach()",
        "student.mass",
        (gradient_of("rethinking"),),
    ),
    Plant(
        "advantage live",
        "pipeline.objectives.estimators:log_ratio_advantage",
        "(target - student).detach()",
        "target - student",
        ("tests/test_objectives.py::test_advantage_is_the_clipped_log_ratio_of_teacher_and_student",),
    ),
    Plant(
        "advantage reversed",
        "pipeline.objectives.estimators:log_ratio_advantage",
        "(target - student).detach()",
        "(student - target).detach()",
        (gradient_of("lightning"),),
    ),
    Plant(
        "maximum for minimum",
        "pipeline.objectives.estimators:proximal",
        "torch.minimum",
        "torch.maximum",
        (gradient_of("eopd"), gradient_of("uni_opd")),
    ),
    Plant(
        "ratio upside down",
        "pipeline.objectives.ratios:importance",
        "(student - sampling).detach()",
        "(sampling - student).detach()",
        (gradient_of("thinking_machines"),),
    ),
    Plant(
        "ratio with gradient",
        "pipeline.objectives.ratios:importance",
        "(student - sampling).detach()",
        "student - sampling",
        (gradient_of("thinking_machines"),),
    ),
    Plant(
        "two-sided bound one-sided",
        "pipeline.objectives.ratios:two_sided",
        "(ratio >= low) & (ratio <= high)",
        "ratio <= high",
        ("tests/test_formulas.py",),
    ),
    Plant(
        "baseline of the wrong sign",
        "pipeline.objectives.objective:_advantage",
        "advantage + divergences.reverse_kl(*pair).detach()",
        "advantage - divergences.reverse_kl(*pair).detach()",
        (gradient_of("vopd"),),
    ),
    Plant(
        "position off by one",
        "pipeline.objectives.inputs:Inputs.share_of_response",
        "self.position + 0.5",
        "self.position + 1.5",
        (gradient_of("pw_opsd"),),
    ),
    Plant(
        "discrepancy with the token's own",
        "pipeline.objectives.weight_formulas:earliness",
        "rows.cumsum(dim=-1) - rows",
        "rows.cumsum(dim=-1)",
        (gradient_of("iw_opd"),),
    ),
    Plant(
        "gate inverted",
        "pipeline.objectives.weights:_entropy_gate",
        "seen.target_entropy > weight.above",
        "seen.target_entropy <= weight.above",
        (gradient_of("eopd"),),
    ),
    Plant(
        "special tokens alone",
        "pipeline.objectives.weights:_not_special",
        '1 - seen.facts["special"]',
        'seen.facts["special"]',
        (gradient_of("revisiting"),),
    ),
    Plant(
        "wrong for correct",
        "pipeline.objectives.weights:_where",
        '0.0 if weight.fact == "wrong" else 1.0',
        "1.0",
        (gradient_of("scope"),),
    ),
    Plant(
        "lowest for highest",
        "pipeline.objectives.weight_formulas:top_fraction",
        "rows.argsort(dim=-1, descending=True, stable=True)",
        "rows.argsort(dim=-1, stable=True)",
        (gradient_of("tip"),),
    ),
    Plant(
        "soft or without its overlap",
        "pipeline.objectives.weight_formulas:soft_or",
        "h + d - h * d",
        "h + d",
        ("tests/test_formulas.py", "-k", "tip"),
    ),
    Plant(
        "weight not normalised",
        "pipeline.objectives.reductions:factors",
        "(weight * share).sum()",
        "share.sum()",
        (gradient_of("srpo"),),
    ),
    Plant(
        "parts out of proportion",
        "pipeline/recipes/srpo.yaml:terms.2.coefficient",
        "0.25",
        "0.5",
        (gradient_of("srpo"),),
    ),
    Plant(
        "mean after selection",
        "pipeline.objectives.reductions:factors",
        "sum(float(mine.sum()) for mine in is_own)",
        "sum(float(weight.sum()) for weight in own)",
        (gradient_of("scope"),),
    ),
    Plant(
        "denominator of a pack",
        "pipeline.objectives.objective:Objective.weigh",
        "_factors(term, of_packs, has_sources)",
        "[_factors(term, [one], has_sources)[0] for one in of_packs]",
        ("tests/test_laws.py", "-k", "packs_changes_nothing and scope"),
    ),
    Plant(
        "mixture not normalised",
        "pipeline.objectives.target_formulas:_normalised",
        "logs - total.unsqueeze(-1)",
        "logs",
        (gradient_of("protein_consensus"),),
    ),
    Plant(
        "views in different orders",
        "pipeline.objectives.target_formulas:aligned",
        "ids.argsort(dim=-1).gather(-1, place_of_rank)",
        "ids.argsort(dim=-1)",
        (gradient_of("protein_consensus"),),
    ),
    Plant(
        "extrapolated the other way",
        "pipeline.objectives.targets:_extrapolate",
        "[target.factor, 1 - target.factor]",
        "[1 - target.factor, target.factor]",
        (gradient_of("exopd"),),
    ),
    Plant(
        "loss of another source",
        "pipeline.objectives.objective:_factors",
        '[inputs.facts[f"source={source}"].double() for source in term.sources]',
        "[torch.ones_like(weight) for _ in term.sources]",
        (gradient_of("stable_opd"),),
    ),
    Plant(
        "chosen for rejected",
        "pipeline.objectives.estimators:preference",
        "gain[0::2] - gain[1::2]",
        "gain[1::2] - gain[0::2]",
        (gradient_of("soda"),),
    ),
    Plant(
        "pairs of the next response",
        "pipeline.objectives.estimators:preference",
        "gain[0::2] - gain[1::2]",
        "gain[0::2] - gain[1::2].roll(1)",
        (gradient_of("soda"),),
    ),
    Plant(
        "partner of another prompt",
        "pipeline.training.preference_pairs:find_partners",
        "chosen[prompt]",
        "next(iter(chosen.values()))",
        ("tests/test_pairs.py",),
    ),
    Plant(
        "pair torn apart",
        "pipeline.training.batches:build_batch",
        "sizes.reshape(-1, unit).sum(axis=1)",
        "sizes",
        ("tests/test_pairs.py",),
    ),
    Plant(
        "schedule reversed",
        "pipeline.settings.reading:Schedule.at",
        "self.start + (self.end - self.start) * shares[self.shape]",
        "self.end + (self.start - self.end) * shares[self.shape]",
        (gradient_of("sead"),),
    ),
    Plant(
        "group mean over all",
        "pipeline.training.derived:_group_sums",
        "sums[group]",
        "sums[group] * 0 + sums.sum()",
        (DERIVED,),
    ),
    Plant(
        "bias from its own prompt",
        "pipeline.training.derived:cross_fitted_bias",
        "fold != number",
        "fold >= 0",
        (DERIVED,),
    ),
    Plant(
        "facts of the row before",
        "pipeline.training.row_groups:RowGroups.cut_facts",
        "int(self.first_row[number]) + row",
        "max(0, int(self.first_row[number]) + row - 1)",
        ("tests/test_facts.py", "-k", "facts_of_its_own_row"),
    ),
    Plant(
        "prefix without an end",
        "pipeline.objectives.weights:_first_tokens",
        "weight_formulas.first_tokens(seen.inputs.position, value_at(weight.tokens, seen.inputs.step))",
        "torch.ones_like(seen.inputs.position)",
        (value_of("fast_prefix"),),
    ),
    Plant(
        "every turn from the beginning",
        "pipeline.objectives.weights:_first_segments",
        "min(1 + seen.inputs.step // weight.every, weight.most)",
        "weight.most",
        ("tests/test_formulas.py::test_a_recipe_has_the_value_of_its_formula[tcod-1]",),
    ),
    Plant(
        "as drawn for as written",
        "pipeline.objectives.weights:Seen.discrepancy",
        'self.facts["behaviour_logprobs"]',
        'self.facts["sampling_logprobs"]',
        (gradient_of("iw_opd"),),
    ),
    Plant(
        "shifted without a grade",
        "pipeline.training.derived:margin_shift",
        "np.select([correct == 1, correct == 0], [0.5, -0.5], 0.0)",
        "np.select([correct == 1, correct == 0], [0.5, -0.5], -0.5)",
        (DERIVED,),
    ),
    Plant(
        "rows without a score in the mean",
        "pipeline.objectives.inputs:Target.is_scored",
        "(self.ids >= 0).any(dim=-1) | (self.outcomes.tail < 0) | (self.sampled < 0)",
        "self.sampled <= 0",
        ("tests/test_diagnostics.py",),
    ),
    Plant(
        "mean over all tokens",
        "pipeline.objectives.diagnostics:sum_over_tokens",
        "(shares * ~values.isnan()).sum()",
        "shares.sum()",
        ("tests/test_diagnostics.py",),
    ),
    Plant(
        "scale of the logits lost on the way back",
        "pipeline.head.gradient:Chunks.backward",
        "one * output.scale",
        "one * 1.0",
        ("tests/test_head.py",),
    ),
    Plant(
        "soft cap without a slope",
        "pipeline.head.gradient:Chunks.backward",
        "slope is not None",
        "False",
        ("tests/test_head.py",),
    ),
    Plant(
        "padding adds to an id",
        "pipeline.head.gradient:_backward",
        "for_logprobs.masked_fill(ids < 0, 0.0)",
        "for_logprobs.nan_to_num()",
        ("tests/test_head.py",),
    ),
    Plant(
        "last chunk forgotten",
        "pipeline.head.layer:OutputLayer.chunks",
        "range(0, tokens, size)",
        "range(0, max(1, tokens - size), size)",
        ("tests/test_head.py",),
    ),
    Plant(
        "a null row has the values that lie in its place",
        "pipeline.storage.ragged:list_lengths",
        "array.null_count == 0",
        "array.null_count >= 0",
        ("tests/test_shards.py",),
    ),
]


def list_misfits(plants: list[Plant]) -> list[str]:
    """Say of each plant that the code has no place for why it has none."""
    misfits = []
    for one in plants:
        try:
            change(one)
        except UnplantableError as why:
            misfits.append(str(why))
    return misfits


def find(one: Plant) -> bool:
    """Plant one bug, say whether the tests find it, and return that."""
    with tempfile.TemporaryDirectory() as folder:
        is_found = not survives(one, Path(folder))
    print(f"{'found   ' if is_found else 'SURVIVES'}  {one.name}", flush=True)
    return is_found


def main(arguments: list[str]) -> int:
    """Plant all bugs, or those named; the exit status is 1 where one survives or has no place."""
    names = [argument for argument in arguments if argument != "--list"]
    if unknown := set(names) - {one.name for one in PLANTS}:
        sys.exit(f"no planted bug is called {', '.join(sorted(unknown))}; see tests/planted_bugs.py")
    chosen = [one for one in PLANTS if not names or one.name in names]
    if misfits := list_misfits(chosen):
        print(*misfits, f"{len(misfits)} of {len(chosen)} planted bugs do not fit the code.", sep="\n")
        return 1
    if "--list" in arguments:
        print(*(f"{one.where}  {one.name}" for one in chosen), sep="\n")
        return 0
    with ThreadPoolExecutor(PROCESSES) as pool:
        found = list(pool.map(find, chosen))
    print(f"{sum(found)} of {len(chosen)} planted bugs are found by the tests.")
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
