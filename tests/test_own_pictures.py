"""Pictures of all sizes and kinds in a folder of one's own, and damaged ones."""

import numpy as np
import pytest
import torch
from own_sets import draw, noise, opened, told, write_folder
from PIL import Image

from capsnet.data import cache, prepared
from capsnet.data.pictures import decode_picture, measure_picture

# Sizes and colours


def test_images_are_of_the_median_size(tmp_path, capsys):
    for number, (height, width) in enumerate([(10, 30), (12, 36), (14, 20)]):
        draw(tmp_path / "a" / f"{number}.png", height, width)
        draw(tmp_path / "b" / f"{number}.png", height, width)
    assert opened(tmp_path)[0].image_shape == (1, 12, 30)
    assert "; 12×30 pixels (the median picture has 12×30; --size sets another size), grey" in capsys.readouterr().err


def test_no_image_is_large_unless_asked_for(tmp_path, capsys):
    write_folder(tmp_path, 100, 200, 3, count=2)
    assert opened(tmp_path)[0].image_shape == (3, 32, 64)
    assert "32×64 pixels (the median picture has 100×200; --size sets another size), colour" in capsys.readouterr().err
    assert opened(tmp_path, size=(90, 70))[0].image_shape == (3, 90, 70)
    assert "90×70 pixels, colour" in capsys.readouterr().err
    assert opened(tmp_path, size=20, channels=1)[0].image_shape == (1, 20, 20)
    write_folder(tmp_path / "thin", 1, 300, count=2)
    assert opened(tmp_path / "thin")[0].image_shape == (1, 1, 64)


def test_pictures_keep_their_aspect(tmp_path):
    for name in ("a", "b"):
        for number in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("L", (40, 20), 255).save(tmp_path / name / f"{number}.png")
    image = opened(tmp_path, size=16)[0].images[0, 0]
    assert image[4:12].eq(255).all()
    assert image[:4].eq(0).all()
    assert image[12:].eq(0).all()


def test_a_mix_of_formats_and_colours_is_in_colour(tmp_path):
    kinds = {"a.png": "L", "b.jpg": "RGB", "c.gif": "P", "d.bmp": "1", "e.tif": "I;16", "f.webp": "RGBA", "g.tiff": "F"}
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for file, mode in kinds.items():
            Image.new(mode, (9, 9)).save(tmp_path / name / file)
    Image.new("CMYK", (9, 9)).save(tmp_path / "x" / "h.jpeg")
    train, test = opened(tmp_path)
    assert (len(train) + len(test), train.image_shape) == (15, (3, 9, 9))


WHITE = {
    "1": np.ones((4, 5), bool),
    "L": np.full((4, 5), 255, np.uint8),
    "LA": np.full((4, 5, 2), 255, np.uint8),
    "I;16": np.full((4, 5), 65535, np.uint16),
    "F": np.ones((4, 5), np.float32),
}


@pytest.mark.parametrize("mode", WHITE)
def test_pictures_in_grey_are_grey(tmp_path, mode):
    path = tmp_path / "a.tif"
    Image.fromarray(WHITE[mode]).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    assert measure_picture(path, "x")[:3] == (4, 5, 1)
    picture = decode_picture(path, "x")
    assert picture.mode == "L"
    assert np.unique(np.asarray(picture)) == 255


def test_grey_with_transparency_stays_grey(tmp_path):
    pixels = np.zeros((4, 4, 2), np.uint8)
    pixels[:2, :, 1] = 255  # black ink on nothing
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = decode_picture(tmp_path / "a.png", "x")
    assert picture.mode == "L"
    assert np.asarray(picture).tolist() == [[0] * 4] * 2 + [[255] * 4] * 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path, orientation):
    """Measured as they are decoded, and decoded as a viewer shows them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = draw(tmp_path / "a.png", 4, 7, exif=exif)
    picture = decode_picture(path, "x")
    assert measure_picture(path, "x")[:2] == (picture.height, picture.width)
    assert picture.size == ((7, 4) if orientation < 5 else (4, 7))
    stored = torch.from_numpy(noise(4, 7))
    turned = [
        *(stored, stored.flip(1), stored.flip(0, 1), stored.flip(0)),
        *(stored.T, stored.rot90(-1), stored.T.flip(0, 1), stored.rot90(1)),
    ]
    assert (np.asarray(picture) == turned[orientation - 1].numpy()).all()


def test_of_a_picture_that_moves_the_first_moment_is_taken(tmp_path):
    first, second = (Image.new("L", (6, 6), level) for level in (200, 10))
    for ending in ("gif", "webp", "png"):
        path = tmp_path / f"a.{ending}"
        first.save(path, save_all=True, append_images=[second], **({"lossless": True} if ending == "webp" else {}))
        assert np.unique(np.asarray(decode_picture(path, "x"))).tolist() == [200]


# Damage


def entries():
    """All that lies in the cache but locks, which stay."""
    return sorted(path for path in cache.cache_folder().glob("*") if path.suffix != ".lock")


def write_damaged(root, damaged, count=100):
    """Of `2 * count` pictures so many are damaged, each in its own way."""
    write_folder(root, count=count)
    ways = [b"", b"no picture at all", (root / "cats" / "0.png").read_bytes()[:60]]
    for number in range(damaged):
        (root / "dogs" / f"{number}.png").write_bytes(ways[number % 3])
    return root


def test_damaged_pictures_are_named_left_out_and_counted(tmp_path, capsys):
    train, test = opened(write_damaged(tmp_path / "set", 2))
    assert len(train) + len(test) == 198
    said = capsys.readouterr().err
    assert "left out: dogs/0.png is not a picture that can be read (PNG, JPEG, … are)\n" in said
    assert "left out: dogs/1.png is not a picture that can be read" in said
    assert said.endswith("8×8 pixels, grey; 2 damaged left out\n  train + test: cats 80 + 20, dogs 79 + 19\n")
    assert [len(each.labels) for each in (train, test)] == [len(each.images) for each in (train, test)]
    opened(tmp_path / "set")  # told again, from the cache
    assert "; 2 damaged left out\n" in capsys.readouterr().err


def test_too_many_damaged_pictures_stop_and_leave_nothing(tmp_path):
    place = write_damaged(tmp_path / "set", 3)
    before = entries()
    answer = told(place)
    assert answer.startswith(f"more than 1 % of the 200 pictures of {place} cannot be read, the last one: dogs/")
    assert entries() == before


def test_a_truncated_picture_is_damaged(tmp_path, capsys):
    write_folder(tmp_path, 40, 40, count=60)
    path = tmp_path / "cats" / "7.png"
    path.write_bytes(path.read_bytes()[:-200])
    assert sum(map(len, opened(tmp_path))) == 119
    assert "left out: cats/7.png is damaged or cannot be read: " in capsys.readouterr().err


def test_a_link_that_leads_nowhere_is_a_damaged_picture(tmp_path, capsys):
    write_folder(tmp_path, count=60)
    (tmp_path / "cats" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "cats" / "lock").symlink_to("user@host:1234")
    assert sum(map(len, opened(tmp_path))) == 120
    assert "left out: there is no picture cats/gone.png\n" in capsys.readouterr().err


def test_no_more_than_a_few_damaged_pictures_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepared, "MAX_DAMAGED", 1)
    opened(write_damaged(tmp_path / "set", 30))
    said = capsys.readouterr().err
    assert said.count("left out: ") == prepared.MAX_NAMED
    assert "; 30 damaged left out\n" in said


def test_where_all_pictures_are_damaged_the_first_is_named(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    assert "none of the 4 pictures of" in (answer := told(tmp_path))
    assert ".png is not a picture that can be read" in answer


def test_a_class_of_which_damage_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "MAX_DAMAGED", 1)
    write_damaged(tmp_path, 5, count=5)
    assert "the class 'dogs' of" in (answer := told(tmp_path))
    assert "has no pictures in train" in answer


def test_a_picture_of_too_many_pixels_is_left_out(tmp_path, capsys):
    write_folder(tmp_path, count=60)
    Image.new("1", (11_000, 10_000)).save(tmp_path / "cats" / "huge.png")
    assert sum(map(len, opened(tmp_path))) == 120
    assert "left out: cats/huge.png has 11000×10000 pixels; the limit is 100,000,000\n" in capsys.readouterr().err
