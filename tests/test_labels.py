"""What labels may be: class numbers. Whatever else looks like labels is refused, not learnt from.

In processes of their own, without the shape checks of the test run, which would be first to complain.
"""

from process import run_python

HEAD = """
import torch
import capsnet
from capsnet.evaluation import missed_things
from capsnet.functional import margin_loss, multi_hot
from capsnet.models import build_model

def models(classes, *, detectors=True):
    config = {"in_shape": (1, 20, 20), "num_classes": classes}
    capsules = {"conv_channels": 4, "primary_types": 2, "decoder_hidden": (8,)}
    yield build_model("capsnet", {**config, **capsules})
    yield build_model("capsnet", {**config, **capsules, "decoder": False})
    yield build_model("cnn", {**config, "width": 0.02}).eval()  # without dropout
    yield build_model("pooling-cnn", {**config, "width": 0.02})
    yield build_model("small-cnn", {**config, "channels": (4,), "dense": 8})
    if classes == 2 and detectors:
        yield build_model("detector", {**config, **capsules})
        yield build_model("detector", {**config, **capsules, "decoder": False, "objective": "cross-entropy"})
        yield build_model("cnn-detector", {**config, "channels": (4,), "dense": 8, "decoder_hidden": (8,)})

def refused(use, word=""):
    try:
        result = use()
    except ValueError as error:
        assert word in str(error) and len(str(error).splitlines()) == 1, error
        return True
    raise AssertionError(f"taken: {result}")

torch.manual_seed(0)
images = torch.rand(4, 1, 20, 20)
"""


def test_class_numbers_of_any_integer_type_are_the_same_to_every_model():
    run_python(
        HEAD
        + """
for classes in (2, 4):
    numbers = torch.tensor([0, 1, classes - 1, 0])
    poses = torch.rand(4, 5)
    for model in models(classes):
        targets = poses if hasattr(model, "detect") else None
        wanted = model.loss(images, numbers, targets)
        for kind in (torch.uint8, torch.int8, torch.int16, torch.int32):
            for labels in (numbers.to(kind), numbers.to(kind)[:, None]):
                got = model.loss(images, labels, targets)
                assert got.total == wanted.total, (type(model), kind, labels.shape)
                assert missed_things(got.scores, labels).equal(missed_things(wanted.scores, numbers))
                lengths = got.scores.sigmoid()
                assert margin_loss(lengths, labels) == margin_loss(lengths, numbers)
"""
    )


def test_what_are_no_class_numbers_is_refused_by_every_model():
    run_python(
        HEAD
        + """
for classes in (2, 4):
    numbers = torch.tensor([0, 1, classes - 1, 0])
    one_hot = torch.nn.functional.one_hot(numbers, classes)
    wrong = [
        (one_hot, "labels.argmax(1)"), (one_hot.int(), "labels.argmax(1)"), (one_hot.byte(), "labels.argmax(1)"),
        (one_hot.float(), "whole numbers from 0 to"), (one_hot.bool(), "whole numbers from 0 to"),
        (numbers.float(), "whole numbers from 0 to"), (numbers.double()[:, None], "whole numbers from 0 to"),
        (numbers + 1, f"labels must be 0 to {classes - 1}, but they reach from 1 to {classes}"),
        (numbers - 1, f"labels must be 0 to {classes - 1}"), (numbers + 10**12, f"labels must be 0 to {classes - 1}"),
        (numbers[:3], "3 labels for 4 images"), (numbers[:1], "1 labels for 4 images"),
        (numbers[0], "of shape (B,)"), (numbers[:, None, None], "of shape (B,)"), (one_hot[:, :0], "of shape (B,)"),
        (one_hot.repeat(1, 2), "of shape (B,)"), (numbers.tolist(), "not list"), (numbers.numpy(), "not ndarray"),
    ]
    if classes > 2:
        wrong.append((torch.tensor([[0, 1], [2, 2], [3, 0], [0, 1]]), "must be different"))
    for labels, word in wrong:
        for model in models(classes):
            refused(lambda: model.loss(images, labels, torch.rand(4, 5) if hasattr(model, "detect") else None), word)
        refused(lambda: missed_things(torch.rand(4, classes), labels), word)
        refused(lambda: capsnet.ImageSet((255 * images).byte(), labels, tuple("abcd"[:classes])))
        if word not in ("3 labels for 4 images", "1 labels for 4 images"):
            refused(lambda: multi_hot(labels, classes), word)
"""
    )


def test_the_margin_loss_takes_multi_hot_rows_of_zeros_and_ones_alone():
    run_python(
        HEAD
        + """
lengths, rows = torch.rand(4, 3), torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 1, 0]])
assert margin_loss(lengths, rows) == margin_loss(lengths, rows.float()) == margin_loss(lengths, rows.bool())
wrong = [rows * 2, rows - 1, rows * torch.nan, rows[:3], rows[:, :2], rows.float()[:, 0], torch.tensor([1, 2, 3, 0])]
for targets in wrong:
    refused(lambda: margin_loss(lengths, targets))
"""
    )


def test_classes_of_pairs_are_taken_and_both_count():
    run_python(
        HEAD
        + """
pairs, targets = torch.tensor([[0, 1], [2, 0], [1, 3], [0, 2]]), torch.rand(4, 2, 1, 20, 20)
for model in models(4):
    for kind in (torch.uint8, torch.int32):
        assert model.loss(images, pairs.to(kind), targets).total == model.loss(images, pairs, targets).total
    scores = model.loss(images, pairs, targets).scores
    assert missed_things(scores, pairs).shape == (4, 2)
refused(lambda: capsnet.PairSet(capsnet.ImageSet((255 * images).byte(), pairs[:, 0] % 2, ("a", "b")), 5), "shows both")
"""
    )


def test_a_set_takes_labels_of_any_integer_type():
    run_python(
        HEAD
        + """
bytes_, numbers = (255 * images).byte(), torch.tensor([0, 1, 1, 0])
for labels in (numbers, numbers.byte(), numbers.int(), numbers[:, None], numbers.short()[:, None]):
    data = capsnet.ImageSet(bytes_, labels, ("a", "b"))
    assert data.labels.dtype == torch.int64 and data.labels.equal(numbers)
    model = next(models(2))
    assert capsnet.evaluate(model, data).images == 4
"""
    )
