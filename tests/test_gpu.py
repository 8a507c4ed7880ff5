"""What must hold on a GPU as it does on a CPU. Without a GPU most of it runs on the CPU alone (docs/gpu.md)."""

from dataclasses import replace

import pytest
import torch
from learning import PullThePlug, patched, small

import capsnet
from capsnet import callbacks, runs, training
from capsnet.batches import Batches
from capsnet.convolution import columns_conv2d, conv2d
from capsnet.data import PairSet
from capsnet.functional import lengths, squash
from capsnet.routing import _procedure, route

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that CUDA can use")
CUDA = pytest.param("cuda", marks=(pytest.mark.gpu, NO_GPU))
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])
ON_GPU = pytest.mark.parametrize("device", [CUDA])  # for what is compared with the CPU


@pytest.fixture(autouse=True)
def exact_convolutions():
    """In float32, not in the ten bits that cuDNN takes by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def digits():
    return capsnet.open_dataset("mnist", "test").select(slice(640))


def outcome(function, arguments, grad, device, dtype):
    """Results and gradients, computed on the device, compared on the CPU."""
    leaves = [x.to(device, dtype, copy=True).requires_grad_() for x in arguments]
    y = function(*leaves)
    found = y, *torch.autograd.grad(y, leaves, grad.to(device, y.dtype))
    return [t.detach().double().cpu() for t in found]


def assert_as_precise(function, arguments, grad, device, dtype=torch.float32, bound=2e-6, exact=None):
    """Relative to the largest, the numbers are those of float64 on the CPU."""
    rounded = [x.to(dtype).double() for x in arguments]
    expected = outcome(exact or function, rounded, grad, "cpu", torch.float64)
    for found, right in zip(outcome(function, arguments, grad, device, dtype), expected, strict=True):
        assert found.isfinite().all()
        assert (found - right).abs().max() <= bound * right.abs().max()


@DEVICES
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 0.01)], ids=str)
@pytest.mark.parametrize("shape", [(7, 1152, 8), (3, 10, 16), (5, 3, 2)], ids=str)
def test_squash_and_lengths_are_those_of_float64(device, shape, dtype, bound):
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(shape, generator=generator) * torch.logspace(-3, 3, shape[0])[:, None, None]
    s[0, 0] = 0.0
    grad = torch.randn(shape, generator=generator)
    for row in range(shape[0]):  # each by its own scale
        some = [s[row : row + 1]]
        assert_as_precise(squash, some, grad[row : row + 1], device, dtype, bound)
        assert_as_precise(lengths, some, grad[row : row + 1, :, 0], device, dtype, bound)


@DEVICES
@pytest.mark.parametrize("options", [{}, {"leaky": True}, {"detach_early": True}, {"temperature": 3.0}], ids=str)
@pytest.mark.parametrize(
    ("sizes", "iterations"),
    [((5, 1152, 10, 8, 16), 3), ((130, 36, 5, 8, 16), 3), ((3, 17, 7, 6, 5), 2), ((1, 1, 1, 4, 4), 1)],
    ids=str,
)
def test_routing_forward_and_backward_is_that_of_float64(device, sizes, iterations, options):
    batch, low, high, low_dim, high_dim = sizes
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(batch, low, low_dim, generator=generator) / low_dim**0.5
    weight = torch.randn(high, low, low_dim, high_dim, generator=generator) * 3 * low**-0.5
    grad = torch.randn(batch, high, high_dim, generator=generator)
    flags = {"leaky": False, "detach_early": False, "temperature": 1.0, **options}

    def exact(u, weight):
        return _procedure(u, weight, iterations, **flags)

    def ours(u, weight):
        return route(u, weight, iterations, **options)

    assert_as_precise(ours, [u, weight], grad, device, bound=2e-5, exact=exact)


@DEVICES
def test_routing_takes_half_precision_under_autocast_and_routes_in_float32(device):
    u, weight = torch.randn(4, 50, 8) / 3, torch.randn(5, 50, 8, 16) / 7
    wanted = route(u.bfloat16().float(), weight)
    with torch.autocast(device, torch.bfloat16):
        found = route(u.bfloat16().to(device), weight.to(device))
    assert found.dtype == torch.float32
    assert (found.cpu() - wanted).abs().max() < 1e-5


@DEVICES
@pytest.mark.parametrize(
    ("sizes", "stride"),
    [((6, 1, 28, 28, 32, 9), 1), ((6, 32, 20, 20, 48, 9), 2), ((2, 3, 15, 17, 5, 3), 2)],
    ids=str,
)
def test_convolution_is_that_of_float64(device, sizes, stride):
    batch, channels, height, width, out, kernel = sizes
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight, bias = torch.randn(out, channels, kernel, kernel, generator=generator) / 9, torch.randn(out)
    rows, columns = ((side - kernel) // stride + 1 for side in (height, width))
    grad = torch.randn(batch, out, rows, columns, generator=generator)
    for relu in (False, True):
        assert_as_precise(
            lambda *arguments, relu=relu: conv2d(*arguments, stride=stride, relu=relu),
            [x, weight, bias],
            grad * 0.0 if relu else grad,  # where a rounding error opens or shuts the ReLU
            device,
            bound=1e-5,
        )


@DEVICES
@pytest.mark.parametrize(
    ("sizes", "stride"), [((6, 1, 28, 28, 32, 9), 1), ((3, 3, 15, 17, 5, 4), 2), ((1, 2, 5, 5, 1, 5), 1)], ids=str
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_convolution_by_columns_is_that_of_float64(device, sizes, stride, has_bias):
    batch, channels, height, width, out, kernel = sizes
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(out, channels, kernel, kernel, generator=generator) / 9
    bias = [torch.randn(out, generator=generator)] if has_bias else []
    rows, columns = ((side - kernel) // stride + 1 for side in (height, width))
    grad = torch.randn(batch, out, rows, columns, generator=generator)

    def by_columns(weight, bias=None):
        y = columns_conv2d(x.to(weight), weight, bias, stride, weight.dtype)
        assert y.is_contiguous(memory_format=torch.channels_last)
        return y

    def exact(weight, bias=None):
        return torch.nn.functional.conv2d(x.to(weight), weight, bias, stride)

    assert_as_precise(by_columns, [weight, *bias], grad, device, bound=1e-5, exact=exact)


SHIFTS = capsnet.Recipe(batch_size=100)
AFFINE = capsnet.Recipe(batch_size=100, rotation=10.0, scale=0.1, shear=0.1)
ALL = replace(AFFINE, elastic=1.0, crop=24)


def batches(data, recipe, device):
    """As bytes: a GPU divides them by 255 through a product, whose last bit may be another."""
    made = Batches(data, None, recipe)
    made.move_to(torch.device(device))
    return [made.raw_batch(epoch, step) for epoch, step in ((0, 0), (0, 5), (1, 6))]  # the last one is smaller


@ON_GPU
def test_shifts_and_pairs_are_those_of_the_cpu_bit_for_bit(device, digits):
    for data in (digits, PairSet(digits, 640)):
        for there, here in zip(batches(data, SHIFTS, device), batches(data, SHIFTS, "cpu"), strict=True):
            assert there.images.device.type == device
            for found, expected in zip(there, here, strict=True):
                assert (found is None) == (expected is None)
                assert found is None or found.cpu().equal(expected)
    made = PairSet(digits, 1000, seed=3).to(device).batch(900, 1000)
    for name, expected in vars(PairSet(digits, 1000, seed=3).batch(900, 1000)).items():
        assert getattr(made, name).cpu().equal(expected)


@ON_GPU
@pytest.mark.parametrize("recipe", [AFFINE, ALL], ids=["affine", "all"])
def test_other_augmentation_is_that_of_the_cpu_but_for_rounding(device, digits, recipe):
    for data in (digits, PairSet(digits, 640)):
        if recipe.crop and isinstance(data, PairSet):
            continue
        for there, here in zip(batches(data, recipe, device), batches(data, recipe, "cpu"), strict=True):
            differences = (there.images.cpu().float() - here.images.float()).abs()
            assert differences.max() < (1.01 if data is digits else 2.01)  # a grey value of each digit
            assert (differences > 0.5).float().mean() < 0.001
            assert there.labels.cpu().equal(here.labels)


@DEVICES
@pytest.mark.parametrize("model", ["capsnet", "pairs", "cnn"])
def test_evaluation_counts_as_on_the_cpu(device, digits, model):
    torch.manual_seed(0)
    data = PairSet(digits, 600) if model == "pairs" else digits
    built = capsnet.BaselineCNN((1, 28, 28), 10, width=0.1) if model == "cnn" else small(in_shape=data.image_shape)
    here, there = (capsnet.evaluate(built, data, where) for where in ("cpu", device))
    assert next(built.parameters()).device.type == device
    labels = torch.cat([data.batch(k, k + 100).labels for k in range(0, len(data), 100)])
    found = there.predictions.sort().values if model == "pairs" else there.predictions
    right = labels.sort().values if model == "pairs" else labels
    assert there.errors == int((found != right).reshape(len(data), -1).any(dim=1).sum())
    assert (there.images, there.things) == (here.images, here.things)
    # An untrained network is undecided; rounding may turn a few of its answers.
    assert (there.predictions != here.predictions).float().mean() < 0.02
    assert abs(there.errors - here.errors) <= 0.01 * len(data)


@pytest.mark.parametrize(
    ("device", "graphed"),
    [("cpu", False), *(pytest.param("cuda", graphed, marks=CUDA.marks) for graphed in (False, True))],
)
@pytest.mark.parametrize("pairs", [False, True], ids=["digits", "pairs"])
def test_a_run_that_is_killed_and_resumed_ends_where_it_would_have(
    device, graphed, digits, tmp_path, monkeypatch, pairs
):
    monkeypatch.setattr(training, "worth_at_once", lambda *_: 2 if graphed else 1)
    data = PairSet(digits.select(slice(64)), 64, max_shift=1) if pairs else digits.select(slice(64))
    recipe = capsnet.Recipe(epochs=3, batch_size=16, max_shift=1, ema_decay=0.9, rotation=10.0, warmup=0.3)

    def run(name, resume=False):
        model = small(seed=9 if resume else 0, in_shape=data.image_shape)
        capsnet.fit(model, data, recipe, device=device, progress=False, out=tmp_path / name, resume=resume)
        return capsnet.load(tmp_path / name).state_dict()

    whole, again = run("whole"), run("again")
    monkeypatch.setattr(callbacks, "CHECKPOINT_SECONDS", 0.0)  # after every step
    batch = Batches.raw_batch

    def stop(self, epoch, step):
        if (epoch, step) == (1, 2):
            raise PullThePlug
        return batch(self, epoch, step)

    with patched(Batches, "raw_batch", stop), pytest.raises(PullThePlug):
        run("cut")
    assert not (tmp_path / "cut" / runs.WEIGHTS).exists()
    resumed = run("cut", resume=True)
    for name, weight in whole.items():
        # What repeats bit for bit is resumed bit for bit; what does not, as near as it repeats.
        noise = (again[name] - weight).abs().max()
        assert (resumed[name] - weight).abs().max() <= 4 * noise, f"{name}: two undisturbed runs differ by {noise}"


@ON_GPU
@pytest.mark.parametrize("pairs", [False, True], ids=["digits", "pairs"])
def test_a_graph_of_a_step_trains_as_the_step_does(device, digits, monkeypatch, pairs):
    data = PairSet(digits, 320) if pairs else digits.select(slice(330))  # with a smaller last batch, which is no graph
    recipe = capsnet.Recipe(epochs=3, batch_size=32, ema_decay=0.9, rotation=10.0, warmup=0.2, weight_decay=0.01)
    curves = []
    for graphed in (False, True):
        monkeypatch.setattr(training, "worth_at_once", lambda *_, graphed=graphed: 4 if graphed else 1)
        curves.append(capsnet.fit(small(in_shape=data.image_shape), data, recipe, device=device, progress=False))
    for plain, replayed in zip(*curves, strict=True):
        assert replayed["loss_mean"] == pytest.approx(plain["loss_mean"], rel=0.02)  # bfloat16
        assert replayed["learning_rate"] == pytest.approx(plain["learning_rate"], rel=1e-5)
        assert replayed["step"] == plain["step"]


@DEVICES
def test_training_learns(device, digits):
    recipe = capsnet.Recipe(epochs=6, batch_size=32, max_shift=0)
    rows = capsnet.fit(small(), digits.select(slice(320)), recipe, device=device, progress=False)
    assert rows[-1]["train_error"] < 0.5 * rows[0]["train_error"]
    assert rows[-1]["loss_mean"] < 0.6 * rows[0]["loss_mean"]
