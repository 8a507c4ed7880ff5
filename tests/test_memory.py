"""What training may need at most, in a process of its own."""

from process import run_python

PROGRAM = """
    import sys, tempfile
    from pathlib import Path

    import torch

    import capsnet
    from capsnet.benchmark.measure import peak_memory

    torch.set_num_threads(1)
    capsnet.tune_allocator()  # as the command does
    batch, classes = {batch}, 200
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)
    train = capsnet.ImageSet(images, torch.arange(batch) % classes, tuple(map(str, range(classes))))
    model = capsnet.CapsNet(train.image_shape, train.num_classes)
    with tempfile.TemporaryDirectory() as folder:
        recipe = capsnet.Recipe(epochs=2, batch_size=batch)  # Adam's averages are there from the second step on
        capsnet.fit(model, train, recipe, out=Path(folder, "run"), progress=False)
    print(peak_memory(torch.device("cpu")))
"""


def test_224_by_224_in_colour_with_200_classes_trains_at_batch_64_in_less_than_4_gb():
    assert float(run_python(PROGRAM.format(batch=64))) < 4000
