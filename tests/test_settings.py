"""What a file or a flag says is looked at before it is used.

In a process of its own, without the shape checks of the test run, which would be first to complain.
"""

from process import run_python


def test_a_setting_of_the_wrong_kind_is_refused_whichever_model_has_it():
    told = run_python("""
        import time
        import torch
        import capsnet
        from capsnet.models import MODELS, build_model

        strange = [
            *(2.5, "3", True, None, float("nan"), float("inf"), 10**30, -1, 0, 1j, {}, [[1]], [2.5], ["x"], [True]),
            *([0], [10**30], [3] * 100_000, [[3, 4]] * 100_000, [[[3]]], [[float("nan"), 2]], "x" * 100_000),
        ]
        started = time.process_time()
        torch.set_default_device("meta")
        for name, kind in MODELS.items():
            config = build_model(name, {"in_shape": [1, 28, 28], "num_classes": 2}).config
            if name in ("capsnet", "detector"):
                config = {**config, "stem": 0, "hidden_capsules": [[3, 4]]}
            for setting in config:
                for value in strange:
                    try:
                        build_model(name, {**config, setting: value})  # as a config says it
                        print(name, setting, value)
                        kind(**{**config, setting: value})  # as an argument
                    except capsnet.InputError as error:
                        assert len(str(error)) < 300 and len(str(error).splitlines()) == 1, error
                        assert not any(word in str(error) for word in ("' object", "argument", "supported")), error
        assert time.process_time() < started + 20
    """)
    capsules = [
        *("capsnet decoder True", "capsnet leaky True", "capsnet stem None", "capsnet stem 0"),
        *("detector decoder True", "detector leaky True", "detector stem None", "detector stem 0"),
        *("detector pose_weight 2.5", "detector pose_weight 0"),
    ]
    networks = [
        *("cnn width 2.5", "pooling-cnn padding True", "pooling-cnn width 2.5"),
        *("cnn-detector pose_weight 2.5", "cnn-detector pose_weight 0"),
    ]
    assert sorted(told.splitlines()) == sorted(capsules + networks)
