"""The paper's CNN for MNIST."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from capsnet import functional
from capsnet.convolution import Conv2d
from capsnet.models.base import Images, Labels, Loss, Targets, check_batch, checked_shape, scaled


class BaselineCNN(nn.Module):
    """The paper's CNN for MNIST (section 5): three 5×5 convolutions, two dense layers, dropout, softmax.

    35,445,522 parameters at 28×28×1 and ten classes; `width` multiplies the sizes of all layers within. `forward`
    gives logits.
    """

    def __init__(self, in_shape: tuple[int, int, int], num_classes: int, *, width: float = 1.0) -> None:
        super().__init__()
        channels, rows, columns = checked_shape(in_shape, num_classes)
        self.config: dict[str, Any] = {"in_shape": tuple(in_shape), "num_classes": num_classes, "width": width}
        first, second, third, dense, narrow = (scaled(size, width) for size in (256, 256, 128, 328, 192))
        self.features = nn.Sequential(
            Conv2d(channels, first, 5, padding=2),
            nn.ReLU(),
            Conv2d(first, second, 5, padding=2),
            nn.ReLU(),
            Conv2d(second, third, 5, padding=2),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(third * rows * columns, dense),
            nn.ReLU(),
            nn.Linear(dense, narrow),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(narrow, num_classes),
        )
        start_weights(self)

    def forward(self, images: Images) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.features(check_batch(images)))

    def loss(self, images: Images, labels: Labels, targets: Targets | None = None) -> Loss:
        """Cross-entropy; several classes on an image share the probability. `targets` are for decoders: unused."""
        logits = self(images)
        present = functional.multi_hot(labels, logits.shape[1])
        share = present / present.sum(dim=1, keepdim=True)
        return Loss(nn.functional.cross_entropy(logits, share), {}, logits)

    def probabilities(self, images: Images) -> Float[Tensor, "batch classes"]:
        """Softmax of the logits."""
        return self(images).softmax(dim=1)


def start_weights(model: nn.Module) -> None:
    """He's scale for every layer, as for CapsNet's first: PyTorch's default shrinks the signal at each of them."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
