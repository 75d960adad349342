"""Bugs in what is checked where a model is opened and where its numbers come out."""

from tests.planting import Plant

SWEEP = "tests/test_sweep.py::test_what_an_architecture_bears_is_found_out"

PLANTS = [
    Plant(
        "packing is taken on trust",
        "pipeline.models.probe:_Prober._choose_layout",
        "self._differ(own, packed) is not None",
        "False",
        (f"{SWEEP}[gpt_oss]", f"{SWEEP}[mamba2]"),
    ),
    Plant(
        "the head is taken on trust",
        "pipeline.models.probe:_Prober.probe",
        "self._check_head(own, self._by_head(alone))",
        "self._by_head(alone)",
        (f"{SWEEP}[recurrent_gemma]",),
    ),
    Plant(
        "the kernel is taken on trust",
        "pipeline.models.student:Student.caps_scores",
        'getattr(self._model().config.get_text_config(), "attn_logit_softcapping", None) is not None',
        "False",
        (f"{SWEEP}[gemma2]",),
    ),
    Plant(
        "what was found out is not minded",
        "pipeline.models.packing:plan_batches",
        "layout is Layout.PACKED",
        "True",
        ("tests/test_sweep.py::test_an_architecture_is_computed_as_it_computes_itself_or_refused[lfm2]",),
    ),
    Plant(
        "generation by the folder's settings",
        "pipeline.models.open:open_student",
        "GenerationConfig(eos_token_id=list(model.eos_ids))",
        "None",
        ("tests/test_folders.py",),
    ),
    Plant(
        "weights that are no numbers",
        "pipeline.models.student:find_unfinite",
        "not torch.isfinite(values.detach()).all()",
        "False",
        ("tests/test_finite.py",),
    ),
    Plant(
        "a mask over what is no number",
        "pipeline.objectives.divergences:_paired",
        "~(torch.isneginf(log_q) | torch.isneginf(log_p))",
        "torch.isfinite(log_q) & torch.isfinite(log_p)",
        ("tests/test_finite.py",),
    ),
    Plant(
        "a step that is no number is taken",
        "pipeline.training.module:Distillation._check_finite",
        "math.isfinite(loss) and math.isfinite(norm)",
        "True",
        ("tests/test_finite.py",),
    ),
    Plant(
        "scores that are no numbers are written",
        "pipeline.engines.checked:CheckedEngine.score",
        "wrong is not None",
        "False",
        ("tests/test_finite.py",),
    ),
]
