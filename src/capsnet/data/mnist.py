"""MNIST as it ships inside this package: no download, checksums verified on load.

`scripts/pack_mnist.py` wrote the two files from the published IDX files. The data is Y. LeCun's and C. Cortes's,
under CC BY-SA 3.0 (see `MNIST-LICENSE.txt` beside this file).
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import torch

from capsnet.data.image_set import ImageSet
from capsnet.errors import InputError

SHA256 = {
    "train": "4ae3fd71ed4904170e061b522ddb5a6ebebd670045297cfbe93a7d4996886af1",
    "test": "cde96b8eabd8eebf818ae53bd513ad743daea58f8d9801f446cca4980d5dcfb0",
}


def load_mnist(split: str) -> ImageSet:
    """60,000 training or 10,000 test digits, 1×28×28. Raises `InputError` if the packed file is damaged."""
    path = Path(__file__).with_name(f"mnist-{split}.npz")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256[split]:
        raise InputError(f"{path} is damaged (its checksum is wrong); reinstall capsnet")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    return ImageSet(
        torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long(), tuple(str(digit) for digit in range(10))
    )
