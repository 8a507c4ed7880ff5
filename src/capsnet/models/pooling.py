"""The paper's CNN for MultiMNIST: the usual network with max-pooling."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from capsnet.convolution import Conv2d
from capsnet.errors import InputError
from capsnet.models.base import Images, Labels, Loss, Targets, check_images, scaled, sigmoid_loss
from capsnet.models.baseline import start_weights
from capsnet.models.settings import checked
from capsnet.pooling import MaxPool2d


class PoolingCNN(nn.Module):
    """Two convolutions, 512 of 9×9 and 256 of 5×5, each with 2×2 max-pooling, and two dense layers (section 6).

    Padded to keep the image's size it is the paper's CNN for MultiMNIST: 24,563,978 parameters at 36×36×1. Without
    padding it has about as many as CapsNet: 12,767,498 at 40×40×1 beside 13,475,648, for affNIST. `width` multiplies
    the sizes of all layers within. `forward` gives logits; each class has its own sigmoid, so any number of them may
    be present.
    """

    def __init__(
        self, in_shape: tuple[int, int, int], num_classes: int, *, padding: bool = True, width: float = 1.0
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = checked(
            {"in_shape": in_shape, "num_classes": num_classes, "padding": padding, "width": width}
        )
        channels, *sides = self.config["in_shape"]
        rows, columns = (side // 4 if padding else ((side - 8) // 2 - 4) // 2 for side in sides)
        if min(rows, columns) < 1:
            smallest = 4 if padding else 20
            raise InputError(
                f"images of {sides[0]}×{sides[1]} pixels are too small for two poolings; "
                f"the smallest size is {smallest}×{smallest} (--size {smallest})"
            )
        first, second, dense = (scaled(size, width) for size in (512, 256, 1024))
        self.features = nn.Sequential(  # the greatest, then ReLU: the same as ReLU first, with a quarter of the work
            Conv2d(channels, first, 9, padding=4 if padding else 0),
            MaxPool2d(),
            nn.ReLU(),
            Conv2d(first, second, 5, padding=2 if padding else 0),
            MaxPool2d(),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(second * rows * columns, dense), nn.ReLU(), nn.Linear(dense, num_classes)
        )
        start_weights(self)

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        check_images(images, self.config["in_shape"])
        return self.classifier(self.features(images))

    def loss(self, images: Images, labels: Labels, targets: Targets | None = None) -> Loss:
        """Sigmoid cross-entropy, summed over the classes. `targets` are for decoders: unused."""
        logits = self(images)
        return Loss(sigmoid_loss(logits, labels), {}, logits)

    def probabilities(self, images: Images) -> Float[Tensor, "batch classes"]:
        """How likely each class is present: the sigmoid of its logit. They need not sum to one."""
        return self(images).sigmoid()
