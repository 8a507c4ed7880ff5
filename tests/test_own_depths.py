"""Pictures of more than 8 bits a pixel, of more bands than colours, of several pages, and arrays of any numbers."""

import json

import numpy as np
import pytest
from own_sets import draw, noise, opened, told, write_folder, write_tiff
from PIL import Image
from terminal import typed

import capsnet
from capsnet import runs
from capsnet.data.depth import extremes, to_bytes
from capsnet.data.pictures import decode_picture, measure_picture, read_picture

SHADES = np.arange(64).reshape(8, 8) / 63
KINDS = {
    "12 of 16 bits": (np.uint16, 200, 1700),
    "thermal": (np.uint16, 7300, 7700),
    "all 16 bits": (np.uint16, 0, 65535),
    "16 bits with a sign": (np.int16, -900, 100),
    "8 bits with a sign": (np.int8, -100, 100),
    "32 bits": (np.int32, 200, 1700),
    "32 bits without a sign": (np.uint32, 2**31 - 2**20, 2**31 + 2**20),
    "floats": (np.float32, 500, 3500),
    "CT": (np.float32, -900, 100),
    "floats to 1": (np.float32, 0, 1),
    "colours of 16 bits": (np.uint16, 100, 4095),
}


def write_deep(root, kind, low, high, colours=1, count=5):
    """Two classes of pictures that together reach from `low` to `high`, each of them half as far."""
    for name, start in (("a", 0.0), ("b", 0.5)):
        for number in range(count):
            pixels = low + (high - low) * (start + SHADES / 2)
            pixels = np.roll(pixels, number).astype(kind)
            write_tiff(root / name / f"{number}.tif", pixels if colours == 1 else np.stack([pixels] * colours, axis=2))
    return root


@pytest.mark.parametrize("name", KINDS)
def test_a_set_of_any_numbers_is_seen_in_full(tmp_path, name, capsys):
    kind, low, high = KINDS[name]
    colours = 3 if "colours" in name else 1
    train, test = opened(write_deep(tmp_path, kind, low, high, colours))
    assert f"of more than 8 bits a pixel {low:,.6g} to {high:,.6g} became 0 to 255 (--pixel" in capsys.readouterr().err
    assert train.framing == test.framing == capsnet.data.framing.Framing(pixel_range=(low, high))
    assert train.image_shape == (colours, 8, 8)
    for image, label in zip(train.images, train.labels, strict=True):
        span = (0, 127.5) if label == 0 else (127.5, 255)
        assert abs(float(image.min()) - span[0]) <= 1
        assert abs(float(image.max()) - span[1]) <= 1
        assert len(image.unique()) == 64
    path = tmp_path / "a" / "0.tif"
    assert read_picture(path, train.image_shape, train.framing).tolist() in train.images.tolist() + test.images.tolist()


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("bands", [3, 4])
def test_colours_of_16_bits_are_read_in_full(tmp_path, ending, bands):
    """Also a PNG, which Pillow does not write: it is made here."""
    pixels = np.random.default_rng(0).integers(0, 4096, (9, 7, bands)).astype(np.uint16)
    pixels[..., 3:] = 65535
    path = tmp_path / f"a.{ending}"
    if ending == "tif":
        write_tiff(path, pixels, extra=2)
    else:
        path.write_bytes(png_of_16_bits(pixels))
    assert measure_picture(path, "x") == (9, 7, 3, (pixels[..., :3].min(), pixels[..., :3].max()))
    seen = np.asarray(decode_picture(path, "x", pixel_range=(0, 4095)))
    assert (seen == to_bytes(pixels[..., :3], (0, 4095))).all()
    assert (np.asarray(decode_picture(path, "x")) == pixels[..., :3] >> 8).all()


def png_of_16_bits(pixels):
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, bands = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2 if bands == 3 else 6, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_no_picture_is_scaled_by_itself(tmp_path):
    """A float picture of 0.9 in a set that reaches to 200 is nearly black, as it is."""
    for name in "ab":
        for number, level in enumerate((0.9, 120, 200, 0)):
            write_tiff(tmp_path / name / f"{number}.tif", np.full((8, 8), level, np.float32))
    seen = {level for each in opened(tmp_path) for level in each.images.unique().tolist()}
    assert seen == {0, 1, 153, 255}


def test_pictures_of_8_bits_stay_as_they_are(tmp_path, capsys):
    """Alone, and beside deeper ones; so do their entries in the cache."""
    write_folder(tmp_path / "set")
    train, _ = opened(tmp_path / "set")
    assert "bits a pixel" not in capsys.readouterr().err
    assert train.framing == capsnet.data.framing.Framing()
    for name in ("cats", "dogs"):
        write_tiff(tmp_path / "set" / name / "deep.tif", (SHADES * 900).astype(np.uint16))
    again = opened(tmp_path / "set")
    seen = {image.numpy().tobytes() for each in again for image in each.images}
    assert {noise(8, 8, seed=seed).tobytes() for seed in range(10)} < seen
    assert again[0].framing.pixel_range == (0, 900)


def test_what_is_no_number_is_black_and_does_not_count(tmp_path):
    pixels = (SHADES * 100 - 900).astype(np.float32)
    pixels[0, :3] = np.nan, np.inf, -np.inf
    path = write_tiff(tmp_path / "a.tif", pixels)
    assert measure_picture(path, "x").pixel_range == (pixels[0, 3], pixels[-1, -1])
    assert not np.asarray(decode_picture(path, "x", pixel_range=(-900, -800)))[0, :3].any()
    assert measure_picture(write_tiff(path, np.full((8, 8), np.nan, np.float32)), "x").pixel_range is None


def test_a_few_dead_pixels_do_not_decide(tmp_path):
    pixels = np.random.default_rng(0).integers(200, 1700, (60, 60)).astype(np.uint16)
    pixels[3, 3], pixels[4, 4] = 65535, 0
    low, high = measure_picture(write_tiff(tmp_path / "a.tif", pixels), "x").pixel_range
    assert 200 <= low < 210
    assert 1690 < high < 1700
    assert extremes(np.array([5, 1, 9])) == (1, 9)


def test_large_pictures_are_measured_and_scaled_too(tmp_path, monkeypatch):
    from capsnet.data import depth, pictures

    monkeypatch.setattr(pictures, "MANY_PIXELS", 100)
    monkeypatch.setattr(depth, "MANY_VALUES", 100)
    rows = np.repeat(np.linspace(200, 1700, 40), 60).reshape(40, 60)
    for kind, bands in ((np.uint16, 1), (np.float32, 1), (np.int16, 1), (np.int8, 1), (np.uint16, 3)):
        pixels = (rows / (20 if kind == np.int8 else 1)).astype(kind)
        path = write_tiff(tmp_path / "a.tif", pixels if bands == 1 else np.stack([pixels] * 3, axis=2))
        low, high = measure_picture(path, "x").pixel_range
        assert abs(low - pixels.min()) < 100
        assert abs(high - pixels.max()) < 100
        seen = np.asarray(decode_picture(path, "x", pixel_range=(low, high)).convert("L"))
        assert (np.diff(seen.astype(int), axis=0) >= 0).all()
        assert seen[0].max() < 40
        assert seen[-1].min() > 215


# A range that is given, kept and used


def test_a_range_can_be_given(tmp_path, capsys):
    write_deep(tmp_path, np.uint16, 200, 1700)
    measured, _ = opened(tmp_path)
    given, _ = opened(tmp_path, pixel_range=(0, 3400))
    assert given.framing.pixel_range == (0, 3400)
    assert "of more than 8 bits a pixel 0 to 3,400 became 0 to 255" in capsys.readouterr().err
    assert int(given.images.max()) == round(1700 / 3400 * 255)
    assert not measured.images.equal(given.images)
    again, _ = opened(tmp_path, pixel_range=(200, 1700), size=8, channels=1)
    assert again.images.equal(measured.images)
    typed_by_type, _ = opened(tmp_path, pixel_range=None)
    assert int(typed_by_type.images.max()) == 1700 * 255 // 65535


@pytest.mark.parametrize("pixel_range", [(5, 5), (9, 1), (0, float("inf")), (float("nan"), 1)])
def test_ranges_that_are_none(tmp_path, pixel_range):
    answer = told(write_folder(tmp_path), pixel_range=pixel_range)
    assert answer.startswith("a range of pixels is two numbers, the lower one first, not (")
    assert "pixel ranges are for your own images" in told("mnist", pixel_range=(0, 1))


TINY = ("--epochs", 1, "--width", 0.05, "--size", 20, "--batch-size", 4, "--device", "cpu", "--no-decoder")


@pytest.mark.parametrize("flags", [(), ("--pixel-range", -1000, 400)])
def test_a_run_keeps_the_range_of_its_set(tmp_path, capsys, flags):
    """And predicts, evaluates, resumes and exports by it."""
    write_deep(tmp_path / "set", np.int16, -900, 100, count=3)
    run = tmp_path / "run"
    status, _, err = typed(capsys, "train", "--data", tmp_path / "set", *TINY, *flags, "--out", run)
    assert status == 0, err
    wanted = (-1000.0, 400.0) if flags else (-900.0, 100.0)
    assert runs.read_config(run)["framing"]["pixel_range"] == list(wanted)
    assert runs.open_run(run).framing.pixel_range == wanted
    (run / runs.REPORT).unlink()
    status, _, err = typed(capsys, "train", "--resume", "--out", run)
    assert status == 0, err
    write_deep(tmp_path / "dim", np.int16, -900, -800, count=3)
    dim = runs.open_split(run, str(tmp_path / "dim"))
    assert int(dim.images.max()) <= 128
    path = tmp_path / "dim" / "a" / "0.tif"
    own = runs.open_run(run)
    seen = read_picture(path, (1, 20, 20), own.framing)
    both = [dim, runs.open_split(run, str(tmp_path / "dim"), "train")]
    assert seen.tolist() in [image.tolist() for each in both for image in each.images]
    status, out, err = typed(capsys, "predict", run, path, "--json")
    assert status == 0, err
    assert json.loads(out)["predictions"][0]["class"] in ("a", "b")


def test_flags_of_the_range_are_checked_first(tmp_path, capsys):
    status, _, err = typed(capsys, "train", "--data", tmp_path, "--pixel-range", 5, 1)
    assert (status, err) == (2, "capsnet: a range of pixels is two numbers, the lower one first, not (5.0, 1.0)\n")


# Arrays


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [(np.uint16, 0, 4095), (np.int16, -900, 100), (np.float32, -1, 1), (np.float64, 0, 255), (np.float16, -3, 3)],
)
def test_archives_of_any_numbers(tmp_path, kind, low, high, capsys):
    images = np.stack([(low + (high - low) * np.roll(SHADES, n)).astype(kind) for n in range(20)])
    place = tmp_path / "set.npz"
    halves = (images[12:] / 2).astype(kind)
    np.savez(place, x_train=images[:12], y_train=np.arange(12) % 2, x_test=halves, y_test=np.arange(8) % 2)
    train, test = opened(place)
    assert (int(train.images.min()), int(train.images.max())) == (0, 255)
    assert abs(int(test.images.max()) - round(255 * (max(high, 0) / 2 - low) / (high - low))) <= 1
    assert f"of more than 8 bits a pixel {low:,} to {high:,} became 0 to 255" in capsys.readouterr().err
    assert train.framing.pixel_range == (low, high)


def test_archives_of_two_kinds_have_no_common_range(tmp_path):
    x, y = np.zeros((6, 8, 8)), np.arange(6) % 2
    np.savez(tmp_path / "a.npz", x_train=x.astype(int), y_train=y, x_test=x - 1, y_test=y)
    assert "one scale cannot be found for arrays of different kinds: " in told(tmp_path / "a.npz")


# Bands, pages and files of other kinds


@pytest.mark.parametrize(
    ("shape", "kind", "extra", "answer"),
    [
        (
            (8, 8, 4),
            np.uint8,
            0,
            "x.tif has 4 bands, and one picture in grey or in colour is read; save as one what is",
        ),
        ((8, 8, 4), np.uint8, None, "the last band of x.tif is no transparency"),
        ((8, 8, 5), np.uint8, 0, "x.tif has 5 bands"),
        ((8, 8, 8), np.uint16, None, "x.tif is a TIFF of 8 bands, and one picture in grey or in colour is read; save"),
        ((8, 8, 4), np.uint16, 0, "x.tif has 4 bands"),
        ((8, 8, 2), np.uint8, 0, "x.tif is a TIFF of 2 bands"),
        ((8, 8, 2), np.uint16, None, "x.tif is a TIFF of 2 bands"),
        ((8, 8, 4), np.uint8, 2, "the last band of x.tif is no transparency, for most of it is neither 0 nor 255"),
        ((8, 8, 2), np.uint8, 2, "the last band of x.tif is no transparency"),
        ((8, 8), np.float64, None, "x.tif is a TIFF of 64-bit float numbers, which cannot be read; save it with whole"),
        ((8, 8), np.float16, None, "x.tif is a TIFF of 16-bit float numbers"),
        (
            (8, 8, 3),
            np.float32,
            None,
            "x.tif is a TIFF of 3 × 32-bit float numbers, which cannot be read; save it with",
        ),
    ],
)
def test_what_is_more_than_a_picture_is_named(tmp_path, shape, kind, extra, answer):
    pixels = noise(*shape).astype(kind)
    write_tiff(tmp_path / "x.tif", pixels, extra=extra)
    with pytest.raises(capsnet.InputError) as refused:
        decode_picture(tmp_path / "x.tif", "x.tif")
    assert answer in str(refused.value)
    for name in ("a", "b"):
        for number in range(3):
            write_tiff(tmp_path / "set" / name / f"{number}.tif", pixels, extra=extra)
    assert answer.split("x.tif")[-1] in told(tmp_path / "set")


def test_transparency_that_is_one_is_read(tmp_path):
    pixels = noise(8, 8, 4)
    pixels[..., 3] = 255
    pixels[:3, :, 3] = 0
    pixels[3, :, 3] = 99
    assert decode_picture(write_tiff(tmp_path / "a.tif", pixels, extra=2), "x").mode == "RGB"


def test_stacks_of_pages_are_named(tmp_path):
    page = noise(8, 8)
    for count in (2, 4):
        path = write_tiff(tmp_path / "a.tif", *[page] * count)
        for look in (decode_picture, measure_picture):
            with pytest.raises(capsnet.InputError) as refused:
                look(path, "a.tif")
            assert f"a.tif has {count} pages, and one picture in grey or in colour is read" in str(refused.value)
    assert decode_picture(write_tiff(path, page, page[:4, :4]), "x").size == (8, 8)  # a smaller copy of it
    draw(tmp_path / "b.tif")
    assert decode_picture(tmp_path / "b.tif", "x").size == (8, 8)


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "x is a HEIC picture, which cannot be read; convert it to JPEG or PNG"),
        (b"\0" * 128 + b"DICM" + b"\0" * 60, "x is a DICOM file, which cannot be read; save its pixels"),
        (b"II*\0\xff\xff\xff\xff", "x is not a picture that can be read (PNG, JPEG, … are)"),
        (b"?", "x is not a picture that can be read (PNG, JPEG, … are)"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, content, answer):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(capsnet.InputError) as refused:
        decode_picture(tmp_path / "a.jpg", "x")
    assert str(refused.value).startswith(answer)


def test_grey_that_pillow_writes_deep_is_the_same_as_ours(tmp_path):
    pixels = (SHADES * 1500 + 200).astype(np.uint16)
    for ending in ("png", "tif"):
        Image.fromarray(pixels).save(tmp_path / f"a.{ending}")
        assert measure_picture(tmp_path / f"a.{ending}", "x").pixel_range == (200, 1700)


@pytest.mark.parametrize(("kind", "bands"), [(np.uint16, 3), (np.int8, 1), (np.uint32, 1)])
def test_pictures_that_are_held_twice_may_be_half_as_large(tmp_path, monkeypatch, kind, bands):
    from capsnet.data import pictures

    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    path = write_tiff(tmp_path / "a.tif", np.zeros((8, 8, bands) if bands > 1 else (8, 8), kind))
    with pytest.raises(capsnet.InputError) as refused:
        decode_picture(path, "x")
    assert str(refused.value) == "x has 8×8 pixels; the limit is 50"
