"""Bugs that the tests must find: each is planted into a copy of the code, and the tests named with it must then fail.

    python -m tests.planted_bugs [NAME ...]

Run it before a release, and for a formula that you touched. A plant that survives is a test that is missing.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("pipeline", "stages", "tests")


@dataclass(frozen=True)
class Plant:
    """One bug: in `file` under pipeline/, `was` (which occurs once) becomes `now`; `tests` must notice."""

    name: str
    file: str
    was: str
    now: str
    tests: tuple[str, ...]


def of(recipe: str) -> str:
    """The formula test of a recipe."""
    return f"tests/test_formulas.py::test_a_recipe_has_the_gradient_of_its_formula[{recipe}]"


def value(recipe: str) -> str:
    """The value of a recipe, where a gradient would not tell."""
    return f"tests/test_formulas.py::test_a_recipe_has_the_value_of_its_formula[{recipe}-0]"


OBJECTIVES, DERIVED = "objectives", "tests/test_derived.py"
PLANTS = [
    Plant(
        "direction swapped",
        f"{OBJECTIVES}/divergences.py",
        "log_p.exp() * (log_p - log_q), entry_clip",
        "log_q.exp() * (log_q - log_p), entry_clip",
        (of("topk_reverse_kl"),),
    ),
    Plant(
        "cross-entropy for KL",
        f"{OBJECTIVES}/divergences.py",
        "log_q.exp() * (log_q - log_p), entry_clip",
        "log_q.exp() * (-log_p), entry_clip",
        (value("topk_forward_kl"),),
    ),
    Plant(
        "JSD not scaled",
        f"{OBJECTIVES}/divergences.py",
        "(log_q - log_m) / (1 - beta) +",
        "(log_q - log_m) +",
        (of("gkd"),),
    ),
    Plant(
        "β on the wrong side",
        f"{OBJECTIVES}/divergences.py",
        "new_tensor([beta, 1 - beta])",
        "new_tensor([1 - beta, beta / 2])",
        (of("gkd"),),
    ),
    Plant(
        "detach on the weight",
        f"{OBJECTIVES}/divergences.py",
        "log_p.exp() * (log_p - log_q).detach()",
        "log_p.exp().detach() * (log_p - log_q)",
        (of("many_faces_stop_gradient"),),
    ),
    Plant(
        "detach forgotten",
        f"{OBJECTIVES}/divergences.py",
        "log_p.exp() * (log_p - log_q).detach()",
        "log_p.exp() * (log_p - log_q)",
        (of("many_faces_stop_gradient"),),
    ),
    Plant(
        "tail in the sum over ids",
        f"{OBJECTIVES}/divergences.py",
        "< exists.shape[-1] - 1)",
        "< exists.shape[-1])",
        (of("many_faces_stop_gradient"),),
    ),
    Plant(
        "tail dropped on restriction",
        f"{OBJECTIVES}/outcomes.py",
        "logsumexp(torch.cat([left_out, outcomes.tail.unsqueeze(-1)], dim=-1))",
        "outcomes.tail",
        ("tests/test_formulas.py::test_a_recipe_has_the_value_of_its_formula[mad_opd-0]",),
    ),
    Plant(
        "student's mass not a constant",
        f"{OBJECTIVES}/divergences.py",
        "student.mass.detach()",
        "student.mass",
        (of("rethinking"),),
    ),
    Plant(
        "advantage live",
        f"{OBJECTIVES}/estimators.py",
        "advantage = (target - student).detach()",
        "advantage = target - student",
        ("tests/test_objectives.py::test_advantage_is_the_clipped_log_ratio_of_teacher_and_student",),
    ),
    Plant(
        "advantage reversed",
        f"{OBJECTIVES}/estimators.py",
        "advantage = (target - student).detach()",
        "advantage = (student - target).detach()",
        (of("lightning"),),
    ),
    Plant(
        "maximum for minimum",
        f"{OBJECTIVES}/estimators.py",
        "-torch.minimum(",
        "-torch.maximum(",
        (of("eopd"), of("uni_opd")),
    ),
    Plant(
        "ratio upside down",
        f"{OBJECTIVES}/ratios.py",
        "(student - sampling).detach().clamp",
        "(sampling - student).detach().clamp",
        (of("thinking_machines"),),
    ),
    Plant(
        "ratio with gradient",
        f"{OBJECTIVES}/ratios.py",
        "(student - sampling).detach().clamp",
        "(student - sampling).clamp",
        (of("thinking_machines"),),
    ),
    Plant(
        "two-sided bound one-sided",
        f"{OBJECTIVES}/ratios.py",
        "(ratio >= low) & (ratio <= high)",
        "ratio <= high",
        ("tests/test_formulas.py",),
    ),
    Plant(
        "baseline of the wrong sign",
        f"{OBJECTIVES}/objective.py",
        "advantage + divergences.reverse_kl(*pair).detach()",
        "advantage - divergences.reverse_kl(*pair).detach()",
        (of("vopd"),),
    ),
    Plant(
        "position off by one",
        f"{OBJECTIVES}/inputs.py",
        "(self.position + 0.5)",
        "(self.position + 1.5)",
        (of("pw_opsd"),),
    ),
    Plant(
        "discrepancy with the token's own",
        f"{OBJECTIVES}/weight_formulas.py",
        "rows.cumsum(dim=-1) - rows",
        "rows.cumsum(dim=-1)",
        (of("iw_opd"),),
    ),
    Plant(
        "gate inverted",
        f"{OBJECTIVES}/weights.py",
        "(seen.target_entropy > weight.above)",
        "(seen.target_entropy <= weight.above)",
        (of("eopd"),),
    ),
    Plant(
        "special tokens alone",
        f"{OBJECTIVES}/weights.py",
        'return 1 - seen.facts["special"]',
        'return seen.facts["special"]',
        (of("revisiting"),),
    ),
    Plant(
        "wrong for correct",
        f"{OBJECTIVES}/weights.py",
        '(0.0 if weight.fact == "wrong" else 1.0)',
        "1.0",
        (of("scope"),),
    ),
    Plant(
        "lowest for highest",
        f"{OBJECTIVES}/weight_formulas.py",
        "rows.argsort(dim=-1, descending=True, stable=True)",
        "rows.argsort(dim=-1, stable=True)",
        (of("tip"),),
    ),
    Plant(
        "soft or without its overlap",
        f"{OBJECTIVES}/weight_formulas.py",
        "return h + d - h * d",
        "return h + d",
        ("tests/test_formulas.py", "-k", "tip"),
    ),
    Plant(
        "weight not normalised",
        f"{OBJECTIVES}/reductions.py",
        "total = sum(float((weight * share).sum())",
        "total = sum(float(share.sum())",
        (of("srpo"),),
    ),
    Plant(
        "parts out of proportion",
        "recipes/srpo.yaml",
        "coefficient: 0.25",
        "coefficient: 0.5",
        (of("srpo"),),
    ),
    Plant(
        "mean after selection",
        f"{OBJECTIVES}/reductions.py",
        "total = sum(float(mine.sum()) for mine in is_own)",
        "total = sum(float(weight.sum()) for weight in own)",
        (of("scope"),),
    ),
    Plant(
        "denominator of a pack",
        f"{OBJECTIVES}/objective.py",
        "by_term[place] = _factors(term, of_packs, has_sources)",
        "by_term[place] = [_factors(term, [one], has_sources)[0] for one in of_packs]",
        ("tests/test_laws.py", "-k", "packs_changes_nothing and scope"),
    ),
    Plant(
        "mixture not normalised",
        f"{OBJECTIVES}/target_formulas.py",
        "_split(logs - total.unsqueeze(-1)), total",
        "_split(logs), total",
        (of("protein_consensus"),),
    ),
    Plant(
        "views in different orders",
        f"{OBJECTIVES}/target_formulas.py",
        "ids.argsort(dim=-1).gather(-1, place_of_rank)",
        "ids.argsort(dim=-1)",
        (of("protein_consensus"),),
    ),
    Plant(
        "extrapolated the other way",
        f"{OBJECTIVES}/targets.py",
        "powers = [target.factor, 1 - target.factor]",
        "powers = [1 - target.factor, target.factor]",
        (of("exopd"),),
    ),
    Plant(
        "loss of another source",
        f"{OBJECTIVES}/objective.py",
        'inputs.facts[f"source={source}"].double() for source in term.sources',
        "torch.ones_like(weight) for _ in term.sources",
        (of("stable_opd"),),
    ),
    Plant(
        "chosen for rejected",
        f"{OBJECTIVES}/estimators.py",
        "softplus(-beta * (gain[0::2] - gain[1::2]))",
        "softplus(-beta * (gain[1::2] - gain[0::2]))",
        (of("soda"),),
    ),
    Plant(
        "pairs of the next response",
        f"{OBJECTIVES}/estimators.py",
        "gain[0::2] - gain[1::2]",
        "gain[0::2] - gain[1::2].roll(1)",
        (of("soda"),),
    ),
    Plant(
        "partner of another prompt",
        "training/preference_pairs.py",
        "found[rows] = np.resize(chosen[prompt], len(rows))",
        "found[rows] = np.resize(next(iter(chosen.values())), len(rows))",
        ("tests/test_pairs.py",),
    ),
    Plant(
        "pair torn apart",
        "training/batches.py",
        "plan_packs(sizes.reshape(-1, unit).sum(axis=1), tokens)",
        "plan_packs(sizes, tokens)",
        ("tests/test_pairs.py",),
    ),
    Plant(
        "schedule reversed",
        "settings/reading.py",
        "self.start + (self.end - self.start) *",
        "self.end + (self.start - self.end) *",
        (of("sead"),),
    ),
    Plant(
        "group mean over all",
        "training/derived.py",
        "return sums[group], np.bincount(group[known]",
        "return sums[group] * 0 + sums.sum(), np.bincount(group[known]",
        (DERIVED,),
    ),
    Plant(
        "bias from its own prompt",
        "training/derived.py",
        "others, mine = fold != number, fold == number",
        "others, mine = fold >= 0, fold == number",
        (DERIVED,),
    ),
    Plant(
        "facts of the row before",
        "training/row_groups.py",
        "self._facts.of(int(self.first_row[number]) + row, group",
        "self._facts.of(max(0, int(self.first_row[number]) + row - 1), group",
        ("tests/test_facts.py", "-k", "facts_of_its_own_row"),
    ),
    Plant(
        "prefix without an end",
        f"{OBJECTIVES}/weights.py",
        "return weight_formulas.first_tokens(seen.inputs.position, value_at(weight.tokens, seen.inputs.step))",
        "return torch.ones_like(seen.inputs.position)",
        (value("fast_prefix"),),
    ),
    Plant(
        "every turn from the beginning",
        f"{OBJECTIVES}/weights.py",
        "min(1 + seen.inputs.step // weight.every, weight.most)",
        "weight.most",
        ("tests/test_formulas.py::test_a_recipe_has_the_value_of_its_formula[tcod-1]",),
    ),
    Plant(
        "as drawn for as written",
        f"{OBJECTIVES}/weights.py",
        'self.target.sampled - self.facts["behaviour_logprobs"]',
        'self.target.sampled - self.facts["sampling_logprobs"]',
        (of("iw_opd"),),
    ),
    Plant(
        "shifted without a grade",
        "training/derived.py",
        "[correct == 1, correct == 0], [0.5, -0.5], 0.0)",
        "[correct == 1, correct == 0], [0.5, -0.5], -0.5)",
        (DERIVED,),
    ),
    Plant(
        "rows without a score in the mean",
        "objectives/inputs.py",
        "return (self.ids >= 0).any(dim=-1) | (self.outcomes.tail < 0) | (self.sampled < 0)",
        "return self.sampled <= 0",
        ("tests/test_diagnostics.py",),
    ),
    Plant(
        "mean over all tokens",
        f"{OBJECTIVES}/diagnostics.py",
        "(shares * ~values.isnan()).sum()",
        "shares.sum()",
        ("tests/test_diagnostics.py",),
    ),
    Plant(
        "scale of the logits lost on the way back",
        "head/gradient.py",
        "one * output.scale for",
        "one * 1.0 for",
        ("tests/test_head.py",),
    ),
    Plant(
        "soft cap without a slope",
        "head/gradient.py",
        "if slope is not None:",
        "if slope is not None and slope is None:",
        ("tests/test_head.py",),
    ),
    Plant(
        "padding adds to an id",
        "head/gradient.py",
        "for_logprobs = for_logprobs.masked_fill(ids < 0, 0.0)",
        "for_logprobs = for_logprobs.nan_to_num()",
        ("tests/test_head.py",),
    ),
    Plant(
        "last chunk forgotten",
        "head/layer.py",
        "for start in range(0, tokens, size):",
        "for start in range(0, max(1, tokens - size), size):",
        ("tests/test_head.py",),
    ),
    Plant(
        "a null row has the values that lie in its place",
        "storage/ragged.py",
        "if array.null_count == 0:",
        "if array.null_count >= 0:",
        ("tests/test_shards.py",),
    ),
]


def survives(plant: Plant, folder: Path) -> bool:
    """Whether the tests pass with the bug, in a copy of the code."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    path = folder / "pipeline" / plant.file
    path.write_text(path.read_text().replace(plant.was, plant.now))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *plant.tests]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{plant.name}: pytest did not run:\n{done.stdout.decode()[-2000:]}{done.stderr.decode()}")
    return done.returncode == 0


def main(names: list[str]) -> int:
    """Plant all, or those named; the exit status is the number of survivors."""
    chosen = [plant for plant in PLANTS if not names or plant.name in names]
    alive = []
    for plant in chosen:
        with tempfile.TemporaryDirectory() as folder:
            lives = survives(plant, Path(folder))
        print(f"{'SURVIVES' if lives else 'found   '}  {plant.name}", flush=True)
        alive += [plant.name] if lives else []
    print(f"{len(chosen) - len(alive)} of {len(chosen)} planted bugs are found by the tests.")
    return len(alive)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
