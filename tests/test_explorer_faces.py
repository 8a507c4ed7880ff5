"""The explorer's page of a face whose parts are dragged about: its answers, and the page in a real browser."""

import base64
import io

import numpy as np
import pytest
import torch
from browsing import browser as any_browser
from PIL import Image
from serving import serving

import capsnet
from capsnet.data.faces import SLOTS, make_faces
from capsnet.evaluation import detect
from capsnet.explorer import answers
from capsnet.explorer.face_answers import LARGE, Detectors, arranged, see
from capsnet.models import build_model

POSE = (0.0, 0.7, 0.0, 0.0)
SHAPE = {"in_shape": (1, 32, 32), "num_classes": 2}


@pytest.fixture(scope="module")
def detectors():
    torch.manual_seed(0)
    tiny = {"conv_channels": 4, "primary_types": 2, "decoder_hidden": (8,)}
    capsule = build_model("detector", {**SHAPE, **tiny}).eval()
    cnn = build_model("cnn-detector", {**SHAPE, "channels": (4,), "dense": 8}).eval()
    return Detectors(capsule, cnn, ("a capsule network", "a CNN"))


def test_a_face_as_it_is_is_the_one_of_the_data_set(detectors):
    face = make_faces(4, "test", kinds=("face",)).images[3]
    upright = see(detectors, arranged(3), *POSE)
    assert upright.large.shape == (1, LARGE, LARGE)
    assert upright.small.shape == face.shape
    assert detect(detectors.capsule, upright.small[None]).likelihoods == upright.capsule.likelihoods
    pose = make_faces(4, "test", kinds=("face",)).poses[3].tolist()
    down, right, orientation, size, _ = pose
    again = see(detectors, arranged(3), orientation, size, right, down).small
    assert (again.float() - face.float()).abs().mean() < 25  # the same but for its shear


def test_a_part_that_is_moved_moves_on_the_picture(detectors):
    state, turned = arranged(0), (30.0, 0.6, 0.1, -0.05)
    before = see(detectors, state, *turned)
    nose = SLOTS.index("nose")
    back = torch.tensor(before.back) @ torch.tensor([0.1, 0.0])  # a tenth of the picture to the right
    state["parts"][nose]["right"] += float(back[0])
    state["parts"][nose]["down"] += float(back[1])
    after = see(detectors, state, *turned)
    moved = torch.tensor(after.places) - torch.tensor(before.places)
    assert torch.allclose(moved[nose], torch.tensor([0.1, 0.0]), atol=1e-5)
    assert not moved[:nose].any()
    assert not torch.equal(after.small, before.small)


def test_a_part_that_is_taken_away_is_gone(detectors):
    state = arranged(0)
    whole = see(detectors, state, *POSE).large
    state["parts"][SLOTS.index("mouth")]["there"] = False
    less = see(detectors, state, *POSE).large
    changed = (whole != less)[0].nonzero()
    assert len(changed) > 20
    assert changed[:, 0].min() > LARGE / 2  # in the lower half


@pytest.mark.parametrize("kind", ["scrambled", "misoriented", "missing"])
def test_the_kinds_of_non_faces_are_offered(kind, detectors):
    assert see(detectors, arranged(1, kind), *POSE).small.any()


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        {"number": -1, "kind": "face", "parts": []},
        {**arranged(0), "kind": "ghost"},
        {**arranged(0), "parts": [{}] * 6},
        {**arranged(0), "parts": [{"down": "x", "right": 0, "turn": 0, "there": True}] * 6},
        {**arranged(0), "parts": [{"down": float("nan"), "right": 0, "turn": 0, "there": True}] * 6},
    ],
)
def test_what_no_page_sends_is_refused(wrong, detectors):
    with pytest.raises(capsnet.InputError):
        see(detectors, wrong, *POSE)


def test_a_pose_out_of_reach_is_refused(detectors):
    for pose in ((0.0, 5.0, 0.0, 0.0), (500.0, 0.7, 0.0, 0.0), (0.0, None, 0.0, 0.0)):
        with pytest.raises(capsnet.InputError):
            see(detectors, arranged(0), *pose)


@pytest.fixture(scope="module")
def page():
    with serving(answers.open_explorer(None)) as url, any_browser() as browser:
        opened = browser.new_page(viewport={"width": 1280, "height": 1000})
        wrong = []
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.set_default_timeout(15_000)
        opened.goto(url)
        opened.get_by_role("tab", name="A face").click()
        opened.locator(".bars:visible .marked").first.wait_for()
        yield opened
        assert not wrong


def seen(page):
    return page.locator("img[alt='what they see']:visible")


def changed(page, before):
    page.wait_for_function(
        "([image, before]) => image.src !== before", arg=[page.locator(".face img").element_handle(), before]
    )
    return page.locator(".face img").get_attribute("src")


def test_parts_are_dragged_turned_and_taken_away(page):
    image = page.locator(".face img")
    page.wait_for_function("image => image.src.startsWith('data:image/png')", arg=image.element_handle())
    before = image.get_attribute("src")
    mouth = page.locator(".part").nth(SLOTS.index("mouth"))
    box = mouth.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 20, box["y"] - 60, steps=5)
    page.mouse.up()
    before = changed(page, before)
    page.wait_for_timeout(500)
    assert mouth.bounding_box()["y"] == pytest.approx(box["y"] - 80, abs=3)
    drawn = Image.open(io.BytesIO(base64.b64decode(image.get_attribute("src").partition(",")[2]))).convert("L")
    face, side = image.bounding_box(), drawn.width
    at = (box["y"] - 60 - face["y"]) / face["height"] * side  # where the mouth was dragged to, and where it was
    was = at + 80 / face["height"] * side
    middle = torch.from_numpy(np.array(drawn))[:, side // 3 : 2 * side // 3].float()
    assert middle[round(was) - 5 : round(was) + 6].mean() < 10  # nothing is left there
    assert middle[round(at) - 5 : round(at) + 6].mean() > 20
    assert "The capsule says" in page.locator(".said:visible").inner_text()
    assert page.locator(".detection:visible").count() == 3
    before = image.get_attribute("src")
    page.get_by_role("button", name="turn the part to the left").click()
    before = changed(page, before)
    page.get_by_role("button", name="remove it").click()
    before = changed(page, before)
    page.get_by_role("button", name="put it back").wait_for()
    mouth.focus()
    page.keyboard.press("Delete")
    before = changed(page, before)
    page.get_by_role("button", name="Scrambled").click()
    before = changed(page, before)
    page.get_by_role("button", name="Another face").click()
    changed(page, before)
