"""The list of steps: names, order, what runs where, and the sentence for a name that is none."""

import pytest

from fairy.export.steps import ALL_STEPS, EXACT_STEPS, NO_STEPS, STEPS, check_steps, choose_steps, in_order
from fairy.kernels.errors import InputError


def test_names_are_unique_and_every_step_says_why() -> None:
    assert len(ALL_STEPS) == len(STEPS)
    for step in STEPS:
        assert step.name == step.name.lower()
        assert " " not in step.name
        assert step.why
        assert step.gain
        assert set(step.devices) <= {"cpu", "cuda"}


def test_what_runs_is_what_can_run_and_is_not_left_out() -> None:
    cuda = choose_steps(("fused-qkv",), "cuda")
    assert cuda == ALL_STEPS - {"fused-qkv"} - {step.name for step in STEPS if not step.exact}
    cpu = choose_steps((), "cpu")
    assert {"cuda-graphs", "group-norm-silu", "geglu"} & cpu == NO_STEPS
    assert "channels-last" in cpu
    assert choose_steps(("cuda-graphs",), "cpu") == cpu


def test_what_is_not_exact_runs_only_if_it_is_asked_for() -> None:
    approximate = ALL_STEPS - EXACT_STEPS
    assert approximate == {"fp8-linears"}
    for device in ("cpu", "cuda"):
        usual = choose_steps((), device)
        assert not usual & approximate
        assert choose_steps((), device, approximate) == usual | approximate
        assert choose_steps(approximate, device, approximate) == usual
    assert STEPS[-1].name in approximate  # the ladder's last rung, so that all others are exact


def test_order_is_the_lists() -> None:
    assert in_order(["inductor", "one-batch"]) == ("one-batch", "inductor")
    assert check_steps(["inductor", "one-batch", "inductor"]) == ("one-batch", "inductor")
    assert check_steps("inductor") == ("inductor",)


def test_an_unknown_step_is_a_sentence_that_names_the_choices() -> None:
    with pytest.raises(
        InputError, match="without = 'fused_qkv' is no step; choose from one-batch, channels-last, .*, cuda-graphs"
    ):
        choose_steps(("text-kv", "fused_qkv"))
