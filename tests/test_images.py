"""What images a model takes: batches of floats from 0 to 1. Whatever else looks like images is refused in one line.

In a process of its own, without the shape checks of the test run, which would be first to complain.
"""

from process import run_python


def test_images_that_are_none_are_refused_by_every_model():
    run_python("""
import warnings
import torch
import capsnet
from capsnet.evaluation import probabilities
from capsnet.models import build_model

config = {"in_shape": (1, 20, 20), "num_classes": 2}
capsules = {"conv_channels": 4, "primary_types": 2, "decoder_hidden": (8,)}
stem = torch.nn.Conv2d(1, 1, 1)
models = [
    build_model("capsnet", {**config, **capsules}), build_model("capsnet", {**config, **capsules, "stem": stem}),
    build_model("cnn", {**config, "width": 0.02}), build_model("pooling-cnn", {**config, "width": 0.02}),
    build_model("small-cnn", {**config, "channels": (4,), "dense": 8}), build_model("detector", {**config, **capsules}),
    build_model("cnn-detector", {**config, "channels": (4,), "dense": 8}),
]
images, labels, poses = torch.rand(4, 1, 20, 20), torch.tensor([0, 1, 1, 0]), torch.rand(4, 5)
holed = images.clone()
holed[2, 0, 3, 3] = torch.nan
wrong = [
    (images[0], "images[None]"), (images[0, 0], "(B, C, H, W)"), (images[..., None, :, :], "(B, C, H, W)"),
    (images.expand(4, 3, 20, 20), "of shape (4, 3, 20, 20)"), (images[..., 1:], "of shape (4, 1, 20, 19)"),
    (images.flatten(1), "of shape (4, 400)"), (images.permute(0, 2, 3, 1), "of shape (4, 20, 20, 1)"),
    ((255 * images).byte(), "/ 255"), ((255 * images).long(), "/ 255"), (images > 0.5, "/ 255"),
    (images.numpy(), "ndarray"), (holed, "not finite"), (images / 0, "not finite"),
]
for model in models:
    targets = poses if hasattr(model, "detect") else None
    uses = [model, model.probabilities, lambda x: model.loss(x, labels, targets)]
    for value, word in wrong:
        for use in uses + ([model.detect] if targets is not None else []):
            try:
                use(value)
            except ValueError as error:
                assert word in str(error) and len(str(error).splitlines()) == 1, error
            else:
                raise AssertionError((type(model), word))
    assert model.eval().probabilities(images[:0]).shape == (0, 2)  # none at all is a batch, too
    for factor, warned in ((1, False), (3, False), (255, True)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model.probabilities(images * factor)
        assert any("divide bytes by 255" in str(each.message) for each in told) == warned
    for value in (images, images[0], (255 * images)):
        try:
            probabilities(model, value)
        except capsnet.InputError as error:
            assert "must be uint8" in str(error)
        else:
            raise AssertionError("taken")
""")
