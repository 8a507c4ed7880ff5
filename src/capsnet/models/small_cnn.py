"""The usual small CNN: convolutions of 3×3, each with max-pooling, and a dense layer."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from capsnet.convolution import Conv2d
from capsnet.errors import InputError
from capsnet.models.base import Images, Labels, Loss, Targets, check_images, sigmoid_loss
from capsnet.models.baseline import start_weights
from capsnet.models.settings import checked
from capsnet.pooling import MaxPool2d


class SmallCNN(nn.Module):
    """Three 3×3 convolutions, each with ReLU and 2×2 max-pooling, a dense layer, and a sigmoid for each class.

    What one would build today with the parameters and the time of a small CapsNet: `channels` and `dense` make it
    as large as it should be. `forward` gives logits.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: tuple[int, ...] = (32, 64, 128),
        dense: int = 256,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = checked(
            {"in_shape": in_shape, "num_classes": num_classes, "channels": channels, "dense": dense}
        )
        first, height, width = self.config["in_shape"]
        rows, columns = height >> len(channels), width >> len(channels)
        if min(rows, columns) < 1:
            smallest = 1 << len(channels)
            raise InputError(
                f"images of {height}×{width} pixels are too small for {len(channels)} poolings; "
                f"the smallest size is {smallest}×{smallest} (--size {smallest})"
            )
        stages: list[nn.Module] = []
        for before, after in zip((first, *channels), channels, strict=False):
            stages += [Conv2d(before, after, 3, padding=1), MaxPool2d(), nn.ReLU()]  # as ReLU first, with less work
        self.features = nn.Sequential(*stages, nn.Flatten(), nn.Linear(channels[-1] * rows * columns, dense), nn.ReLU())
        self.head = nn.Linear(dense, num_classes)
        start_weights(self)

    def hidden(self, images: Images) -> Float[Tensor, "batch features"]:
        """The last hidden layer."""
        check_images(images, self.config["in_shape"])
        return self.features(images)

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        return self.head(self.hidden(images))

    def loss(self, images: Images, labels: Labels, targets: Targets | None = None) -> Loss:
        """Sigmoid cross-entropy, summed over the classes. `targets` are for decoders: unused."""
        logits = self(images)
        return Loss(sigmoid_loss(logits, labels), {}, logits)

    def probabilities(self, images: Images) -> Float[Tensor, "batch classes"]:
        """How likely each class is present: the sigmoid of its logit. They need not sum to one."""
        return self(images).sigmoid()
