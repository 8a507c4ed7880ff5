"""Pack the four published MNIST files (IDX, gzip) into the two `.npz` files that ship inside the package.

    python scripts/pack_mnist.py FOLDER_WITH_THE_IDX_FILES

Run once; it prints the checksums that `capsnet.data.mnist.SHA256` holds. The same input gives the same bytes.
"""

import gzip
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

# Of the unpacked files: mirrors have compressed the same content anew.
PUBLISHED = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def read_idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    digest = hashlib.sha256(raw).hexdigest()
    if digest != PUBLISHED[path.stem]:
        raise SystemExit(f"{path} does not hold the published data: its SHA-256, unpacked, is {digest}")
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">i4", dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    # Not numpy.savez: that stamps the time of writing into the archive, so its bytes differ from run to run.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main() -> None:
    source = Path(sys.argv[1])
    target = Path(__file__).parents[1] / "src" / "capsnet" / "data"
    for split, prefix in (("train", "train"), ("test", "t10k")):
        path = target / f"mnist-{split}.npz"
        write_npz(
            path,
            images=read_idx(source / f"{prefix}-images-idx3-ubyte.gz"),
            labels=read_idx(source / f"{prefix}-labels-idx1-ubyte.gz"),
        )
        print(f'    "{split}": "{hashlib.sha256(path.read_bytes()).hexdigest()}",')


if __name__ == "__main__":
    main()
