"""Bugs in the state that a stopped run goes on from, and in what is random in it."""

from tests.planting import Plant

STATES = "tests/test_states.py"

PLANTS = [
    Plant(
        "a state is taken on trust",
        "pipeline.training.states:find_state",
        '_hash(state) == state.name.split(".")[1]',
        "True",
        (STATES,),
    ),
    Plant(
        "what is in a state runs",
        "pipeline.training.states:WholeFiles.load_checkpoint",
        'torch.load(path, map_location=map_location or "cpu", weights_only=True)',
        'torch.load(path, map_location=map_location or "cpu", weights_only=False)',
        (STATES,),
    ),
    Plant(
        "dropout of no seed",
        "pipeline.training.module:Distillation._seed_dropout",
        'torch.manual_seed(int(hashing.digest("dropout", *where)[:15], 16))',
        "None",
        (STATES,),
    ),
    Plant(
        "norms decay",
        "pipeline.training.module:Distillation.configure_optimizers",
        '{"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0}',
        '{"params": [one for one in trained if one.ndim <= 1], "weight_decay": settings.weight_decay}',
        (STATES,),
    ),
    Plant(
        "a rise that the run recovered from, told as an alarm",
        "pipeline.objectives.diagnostics:find_first_alarms",
        "name in last or name not in _RISES",
        "True",
        ("tests/test_diagnostics.py::test_a_rise_that_the_run_recovers_from_is_no_alarm",),
    ),
]
