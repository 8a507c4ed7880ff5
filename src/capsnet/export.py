"""A trained model as an ONNX file, for programs in any language (extra `export`).

The file takes pictures as bytes and answers with probabilities; names of the classes and what else its user must know
stand in its metadata. Nothing in it needs this package, or PyTorch.
"""

import contextlib
import importlib.util
import io
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from capsnet.data import to_float
from capsnet.data.posed import POSE
from capsnet.errors import InputError
from capsnet.models import CapsNet, Detector, Model, model_name
from capsnet.models.detector import SCALES, encode_pose
from capsnet.runs import Run

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OPSET = 18
"""The version of ONNX's operators: the oldest that PyTorch's exporter writes without converting."""
TOLERANCE = 1e-4
"""How far an answer of the file may be from the model's. They lie between -1 and 1, or, of a pose, about there."""
MAX_BYTES = 2**31 - 1
"""A single ONNX file is never larger."""

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
CALIBRATION_BATCH = 64
READOUT = "model.readout.weight"


def export_onnx(run: Run, *, decoder: bool = False) -> bytes:
    """The content of an ONNX file that does what the run's model does.

    Its input `images` is uint8 `(batch, channels, height, width)`, 0 to 255, any number of images. Its outputs:
    `probabilities` `(batch, classes)`; of a CapsNet, where they are the lengths of the capsules, also `capsules`
    `(batch, classes, dim)`; of a detector also `poses` `(batch, 5)`, as `capsnet.data.posed.POSE` has them; and with
    `decoder` `reconstruction` `(batch, channels, height, width)`, 0 to 1, from the longest capsule. Raises `InputError`
    if a library is missing or if there is no decoder.
    """
    require("onnx", "onnxscript")
    answers = _Answers(run.model, decoder)
    example = torch.zeros(2, *run.model.config["in_shape"], dtype=torch.uint8)
    with _silence():
        program = torch.onnx.export(
            answers,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=answers.names,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
        assert program is not None
        described = program.model_proto
    _forget_whence(described.graph)
    for key, value in _metadata(run).items():
        described.metadata_props.add(key=key, value=value)
    if described.ByteSize() > MAX_BYTES:
        raise InputError(f"the model has {described.ByteSize():,} bytes; an ONNX file holds up to {MAX_BYTES:,}")
    return described.SerializeToString()


def greatest_difference(
    model: Model, content: bytes, images: UInt8[Tensor, "count channels height width"], *, decoder: bool = False
) -> float:
    """Between any number in the answers of an ONNX file and of the model, for these images together and one alone."""
    session, answers = open_session(content), _Answers(model, decoder)
    differences = []
    for batch in (images, images[:1]):
        with torch.inference_mode():
            wanted = answers(batch)
        got: Any = session.run(answers.names, {"images": batch.numpy()})
        for name, ours, theirs in zip(answers.names, wanted, map(torch.from_numpy, got), strict=True):
            if name == "poses":
                ours, theirs = _comparable(ours), _comparable(theirs)
            differences.append(float((ours - theirs).abs().max()))
    return float(np.max(differences))  # unlike Python's, of NaN and numbers NaN


def quantise(content: bytes, images: UInt8[Tensor, "count channels height width"]) -> bytes:
    """The same ONNX file with weights, and what flows between the layers, in 8 bits where that is known to be safe.

    Ranges are measured on `images`, which should be training images. Routing stays in float32, and so does the
    read-out of poses, whose numbers are to be finer than the 256th part of their range.
    """
    require("onnx", "onnxruntime")
    import onnx
    from onnxruntime import quantization

    readouts = [node.name for node in onnx.load_from_string(content).graph.node if READOUT in node.input]

    class Calibration(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images.split(CALIBRATION_BATCH))

        def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    with _silence(), tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        whole.write_bytes(content)
        quantization.quantize_static(
            whole,
            small,
            Calibration(),
            op_types_to_quantize=["Conv", "Gemm"],
            nodes_to_exclude=readouts,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return small.read_bytes()


def open_session(content: bytes) -> "InferenceSession":
    """The file, ready to answer on the CPU. Raises `InputError` if ONNX Runtime is not installed."""
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def answers_of(
    session: "InferenceSession", images: UInt8[Tensor, "count channels height width"], batch_size: int = 100
) -> tuple[Float[Tensor, "count classes"], float]:
    """The probabilities that the file gives, and the images a second at which it did."""
    started = time.perf_counter()
    parts: list[Any] = [
        session.run(["probabilities"], {"images": batch.numpy()})[0] for batch in images.split(batch_size)
    ]
    return torch.from_numpy(np.concatenate(parts)), len(images) / (time.perf_counter() - started)


class _Answers(nn.Module):
    """Bytes in, all that the file answers out; `names` says in what order."""

    def __init__(self, model: Model, decoder: bool) -> None:
        super().__init__()
        self.model = model.cpu().eval()
        self.decoder = decoder
        self.names = ["probabilities"]
        if isinstance(model, CapsNet):
            self.names.append("capsules")
        if isinstance(model, Detector):
            self.names.append("poses")
        if decoder:
            if not isinstance(model, CapsNet) or model.decoder is None:
                raise InputError("this model has no decoder of capsules to export; leave --decoder out")
            self.names.append("reconstruction")

    def forward(self, images: UInt8[Tensor, "batch channels height width"]) -> tuple[Tensor, ...]:
        pixels = to_float(images)
        if not isinstance(self.model, CapsNet):
            poses = (self.model.detect(pixels).poses,) if isinstance(self.model, Detector) else ()
            return (self.model.probabilities(pixels), *poses)
        capsules, lengths = self.model(pixels)
        answers = [lengths, capsules]
        if isinstance(self.model, Detector):
            answers.append(self.model.pose(capsules))
        if self.decoder:
            answers.append(self.model.reconstruct(capsules))
        return tuple(answers)


def _comparable(poses: Tensor) -> Tensor:
    """Poses as numbers about as large as one, whose difference is small wherever that of the poses is."""
    return encode_pose(poses) / poses.new_tensor(SCALES)


def _forget_whence(graph: Any) -> None:
    """PyTorch notes which line made each node, with paths on the machine of whoever exports: nobody's business."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _metadata(run: Run) -> dict[str, str]:
    """What a program must know beside the numbers; lists and objects as JSON."""
    return {
        "class_names": json.dumps(run.class_names, ensure_ascii=False),
        "framing": json.dumps(vars(run.framing)),
        **({"pose": json.dumps(POSE)} if isinstance(run.model, Detector) else {}),
        "model": model_name(run.model),
        "version": version("capsnet"),
    }


def require(*libraries: str) -> None:
    """Raises `InputError` unless all are installed."""
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise InputError(f"export needs {library}; install it with: pip install 'capsnet[export]'")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter and the quantiser tell of each step, by every way there is."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
