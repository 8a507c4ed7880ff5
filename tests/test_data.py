import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

import capsnet
from capsnet.data import mnist, to_float
from capsnet.data.augment import shift
from capsnet.data.pictures import Framing, decode_picture, measure_framing, measure_picture, read_picture
from capsnet.insight.reconstructions import choose_examples

MNIST_FRAMING = Framing("black", 20 / 28, (0.52, 0.52))


def test_mnist_is_whole():
    train, test = capsnet.open_dataset("mnist"), capsnet.open_dataset("mnist", split="test")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.class_names == tuple("0123456789")
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert torch.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.images.float().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)


def test_damaged_mnist_is_noticed(monkeypatch):
    monkeypatch.setitem(mnist.SHA256, "test", "0" * 64)
    with pytest.raises(capsnet.InputError, match="damaged"):
        capsnet.open_dataset("mnist", "test")


@pytest.mark.parametrize(("name", "split"), [("mnits", "train"), ("mnist", "validation")])
def test_unknown_names_say_what_there_is(name, split):
    with pytest.raises(capsnet.InputError, match=r"there are: (mnist|train, test)"):
        capsnet.open_dataset(name, split)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.long)),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 2])),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([-1, 1])),
        (torch.zeros(0, 1, 3, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.long)),
    ],
)
def test_an_image_set_refuses_what_does_not_fit(images, labels):
    # Past the shape checks of the test run itself, as a user without them would be.
    image_set = object.__new__(capsnet.ImageSet)
    for name, value in (("images", images), ("labels", labels), ("class_names", ("a", "b"))):
        object.__setattr__(image_set, name, value)
    with pytest.raises(capsnet.InputError):
        image_set.__post_init__()


def test_hold_out_splits_without_overlap():
    whole = capsnet.open_dataset("mnist", "test").select(slice(100))
    rest, held_out = whole.hold_out(30)
    assert (len(rest), len(held_out)) == (70, 30)
    seen = {image.numpy().tobytes() for image in rest.images} | {image.numpy().tobytes() for image in held_out.images}
    assert seen == {image.numpy().tobytes() for image in whole.images}
    with pytest.raises(capsnet.InputError, match="cannot hold out 100 of 100"):
        whole.hold_out(100)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(3, 6), st.integers(3, 6), st.integers(0, 3), st.integers(0))
def test_shift_moves_every_image_by_its_own_offset(batch, channels, height, width, reach, seed):
    generator = torch.Generator().manual_seed(seed % 2**32)
    images = torch.randint(256, (batch, channels, height, width), generator=generator, dtype=torch.uint8)
    offsets = torch.randint(-reach, reach + 1, (batch, 2), generator=generator)
    moved = shift(images, offsets, reach)
    for n, (down, right) in enumerate(offsets.tolist()):
        for y in range(height):
            for x in range(width):
                inside = 0 <= y - down < height and 0 <= x - right < width
                expected = images[n, :, y - down, x - right] if inside else torch.zeros(channels, dtype=torch.uint8)
                assert moved[n, :, y, x].equal(expected)


def test_to_float():
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])


def digit(index=0):
    return capsnet.open_dataset("mnist", "test").images[index, 0].numpy()


def test_a_picture_of_the_models_size_is_taken_as_it_is(tmp_path):
    Image.fromarray(digit()).save(tmp_path / "7.png")
    assert (read_picture(tmp_path / "7.png", (1, 28, 28), MNIST_FRAMING)[0].numpy() == digit()).all()


def test_ink_on_paper_is_turned_over(tmp_path):
    Image.fromarray(255 - digit()).save(tmp_path / "7.png")
    assert (read_picture(tmp_path / "7.png", (1, 28, 28), MNIST_FRAMING)[0].numpy() == digit()).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
def test_large_pictures_of_any_kind_come_back_as_the_digit_they_show(tmp_path, mode):
    page = Image.new("L", (640, 480), 255)  # a digit as somebody wrote it: dark, large, off the middle
    page.paste(Image.fromarray(255 - digit()).resize((280, 280), Image.Resampling.BICUBIC), (300, 150))
    name = tmp_path / ("page.tif" if mode == "CMYK" else "page.png")
    page.convert("RGB").convert(mode).save(name)
    seen = read_picture(name, (1, 28, 28), MNIST_FRAMING)[0].numpy().astype(float)
    assert np.corrcoef(seen.ravel(), digit().ravel())[0, 1] > 0.85


def test_transparent_and_sixteen_bit_pictures(tmp_path):
    ink = np.zeros((28, 28, 4), np.uint8)
    ink[..., 3] = digit()  # black, and transparent where there is none
    Image.fromarray(ink).save(tmp_path / "clear.png")
    assert np.abs(read_picture(tmp_path / "clear.png", (1, 28, 28), MNIST_FRAMING)[0].numpy() - digit()).max() == 0
    ink[..., :3] = 255  # white ink, which would not show on white paper
    Image.fromarray(ink).save(tmp_path / "white.png")
    assert (read_picture(tmp_path / "white.png", (1, 28, 28), MNIST_FRAMING)[0].numpy() == digit()).all()
    Image.fromarray(digit().astype(np.float32) / 255).save(tmp_path / "float.tif")
    assert (
        np.abs(read_picture(tmp_path / "float.tif", (1, 28, 28), MNIST_FRAMING)[0].numpy() - 1.0 * digit()).max() <= 1
    )
    Image.fromarray(digit().astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert (read_picture(tmp_path / "deep.png", (1, 28, 28), MNIST_FRAMING)[0].numpy() == digit()).all()


def test_colour_pictures_keep_aspect_and_colours(tmp_path):
    Image.new("RGB", (100, 50), (200, 100, 0)).save(tmp_path / "wide.png")
    image = read_picture(tmp_path / "wide.png", (3, 32, 32))
    assert image.shape == (3, 32, 32)
    assert image[:, 16, 16].tolist() == [200, 100, 0]
    assert image[:, 2, 16].tolist() == [0, 0, 0]  # what the picture does not cover


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_what_is_no_picture_is_refused(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(capsnet.InputError, match=r"x\.png"):
        read_picture(tmp_path / "x.png", (1, 28, 28))


def test_truncated_pictures_are_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(capsnet.InputError, match="damaged"):
        read_picture(tmp_path / "x.png", (1, 28, 28))


def test_missing_pictures_and_folders_are_refused(tmp_path):
    with pytest.raises(capsnet.InputError, match="there is no picture"):
        read_picture(tmp_path / "none.png", (1, 28, 28))
    with pytest.raises(capsnet.InputError, match="is a folder"):
        read_picture(tmp_path, (1, 28, 28))


def test_empty_pages_are_no_trouble(tmp_path):
    Image.new("L", (300, 200), 255).save(tmp_path / "blank.png")
    assert read_picture(tmp_path / "blank.png", (1, 28, 28), MNIST_FRAMING).sum() == 0


def test_framing_is_measured():
    test_set = capsnet.open_dataset("mnist", "test")
    framing = measure_framing(test_set)
    assert framing.background == "black"
    assert framing.extent == pytest.approx(20 / 28, abs=0.01)
    paper = capsnet.ImageSet(255 - test_set.images, test_set.labels, test_set.class_names)
    assert framing.centre == pytest.approx((0.52, 0.52), abs=0.01)
    assert measure_framing(paper) == Framing("white", framing.extent, framing.centre)
    noise = torch.randint(256, (20, 3, 9, 9), dtype=torch.uint8)
    assert measure_framing(capsnet.ImageSet(noise, torch.zeros(20).long(), ("a",))) == Framing()


def test_examples_are_one_success_of_each_class_and_the_failures():
    labels = torch.tensor([0, 0, 1, 2, 2, 1])
    predictions = torch.tensor([1, 0, 1, 2, 0, 1])
    assert choose_examples(labels, predictions, 3).tolist() == [1, 2, 3, 0, 4]


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize(("ending", "options"), [("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})])
def test_turned_pictures_are_upright_and_measured_so(tmp_path, turn, ending, options):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9), dtype=np.uint8)
    upright = [pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1], pixels.T, np.rot90(pixels, -1)]
    upright += [np.rot90(pixels, 2).T, np.rot90(pixels, 1)]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    path = tmp_path / f"turned.{ending}"
    Image.fromarray(pixels).save(path, exif=exif, **options)
    assert np.array_equal(decode_picture(path, "it"), upright[turn - 1])
    assert measure_picture(path, "it") == (*upright[turn - 1].shape, 1, None)


@pytest.mark.parametrize(("height", "width"), [(20, 40), (40, 20)])
def test_what_stands_on_images_that_are_not_square_keeps_its_extent(tmp_path, height, width):
    images = torch.zeros(20, 1, height, width, dtype=torch.uint8)
    images[:, :, 1:19, 6:16] = 255  # 18 high
    framing = measure_framing(capsnet.ImageSet(images, torch.arange(20) % 2, ("a", "b")))
    Image.fromarray(np.pad(np.full((90, 50), 255, np.uint8), 60)).save(tmp_path / "large.png")
    image = read_picture(tmp_path / "large.png", (1, height, width), framing)[0]
    assert abs(int(image.gt(127).any(dim=1).sum()) - 18) <= 1
    Image.fromarray(np.pad(np.full((10, 300), 255, np.uint8), 60)).save(tmp_path / "wide.png")
    image = read_picture(tmp_path / "wide.png", (1, height, width), Framing("black", 1.0))[0]
    assert abs(int(image.gt(127).any(dim=0).sum()) - width) <= 1  # all of it


def test_of_cut_images_the_middle_is_seen(tmp_path):
    """As training sees it: scaled as the whole image, then cut."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    framing = Framing(whole=(32, 40))
    seen = read_picture(tmp_path / "whole.png", (1, 24, 24), framing)[0].numpy()
    assert np.array_equal(seen, pixels[4:28, 8:32])
    Image.fromarray(pixels[:24, :24]).save(tmp_path / "cut.png")
    assert np.array_equal(read_picture(tmp_path / "cut.png", (1, 24, 24), framing)[0].numpy(), pixels[:24, :24])


@pytest.mark.parametrize("background", ["black", "white", None])
def test_things_may_stay_where_they_are(tmp_path, background):
    small = np.full((16, 16), 255 if background == "white" else 0, np.uint8)
    small[2:7, 3:9] = 128
    small[3:5, 3:5] = 255 - small[0, 0]
    large = np.kron(small, np.ones((4, 4), np.uint8))
    Image.fromarray(large if background is None else 255 - large).save(tmp_path / "large.png")
    seen = read_picture(tmp_path / "large.png", (1, 16, 16), Framing(background, extent=None))[0].numpy()
    assert np.abs(seen.astype(int) - small).max() <= 1


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("cifar", r"unknown data set 'cifar'; there are: mnist, multimnist, .*idx:FOLDER.*hub:NAME"),
        ("zip:x", "unknown data set 'zip:x'"),
        ("mnist:x", "unknown data set 'mnist:x'"),
        ("idx", "'idx' does not say where: idx:FOLDER"),
        ("hub:", "'hub:' does not say where: hub:NAME"),
    ],
)
def test_names_that_are_none(name, answer):
    with pytest.raises(capsnet.InputError, match=answer):
        capsnet.open_dataset(name)


def test_pairs_are_not_images_with_one_label():
    with pytest.raises(capsnet.InputError, match="two digits on each image"):
        capsnet.data.open_images("multimnist")
    assert torch.is_tensor(capsnet.data.open_images("mnist", "test").labels)
