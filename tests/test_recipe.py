"""Recipes that cannot be, and the rate that one asks for."""

import pytest
from process import run_python

import capsnet


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": 1e-6},
        {"learning_rate": float("nan")},
        {"max_shift": -1},
        {"ema_decay": 1.0},
        {"warmup": 1.0},
        {"warmup": -1.0},
        {"weight_decay": -0.1},
        {"rotation": -1.0},
        {"elastic": -0.5},
        {"scale": 1.0},
        {"shear": float("nan")},
        {"stop_at_error": 100.0},
        {"seed": -1},
        {"seed": 10**30},
        {"learning_rate": float("inf")},
    ],
)
def test_recipes_that_cannot_be_are_refused(wrong):
    with pytest.raises(capsnet.InputError):
        capsnet.Recipe(**wrong)


def test_recipes_of_the_wrong_kind_are_refused():
    # Without the shape checks of the test run, which would be first to complain.
    told = run_python("""
        import capsnet
        for wrong in ({"decay": "stepwise"}, {"crop": 2.5}, {"epochs": "3"}, {"rotation": None}):
            try:
                print("taken:", capsnet.Recipe(**wrong))
            except capsnet.InputError as error:
                print(error)
    """)
    assert told.splitlines() == [
        "unknown decay 'stepwise'; there are: exponential, cosine, linear",
        "crop must be a whole number, not 2.5",
        "epochs must be a whole number, not '3'",
        "rotation must be a finite number, not None",
    ]


def test_the_rate_rises_in_a_line_and_falls_as_the_recipe_says():
    steps, epochs = 10, 4
    base = {"epochs": epochs, "learning_rate": 0.1, "final_learning_rate": 0.001}
    exponential = [capsnet.Recipe(**base).rate(step, steps) for step in range(40)]
    assert exponential == pytest.approx([0.1 * (0.01 ** (step / 39)) for step in range(40)])
    warm = [capsnet.Recipe(**base, warmup=0.125, decay="linear").rate(step, steps) for step in range(40)]
    assert warm[:6] == pytest.approx([0.1 / 6, 0.2 / 6, 0.3 / 6, 0.4 / 6, 0.5 / 6, 0.1])
    assert warm[5:] == pytest.approx([0.1 - 0.099 * n / 34 for n in range(35)])
    cosine = [capsnet.Recipe(**base, decay="cosine").rate(step, steps) for step in range(40)]
    assert cosine[0] == pytest.approx(0.1)
    assert cosine[13] == pytest.approx(0.001 + 0.099 * 0.75)  # a third of the way: cos 60° = 1/2
    assert cosine[39] == pytest.approx(0.001)
