"""The explorer as people use it: in a real browser, with mouse, keyboard and touch."""

import io
import itertools
import re

import pytest
import torch
from browsing import browser as any_browser
from PIL import Image
from serving import serving

import capsnet
from capsnet.explorer import answers

SEVEN = ((0.3, 0.25), (0.7, 0.25), (0.48, 0.85))
WAIT = 5000  # milliseconds, for a machine that is busy


@pytest.fixture(scope="module")
def url():
    with serving(answers.open_explorer(None)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with any_browser() as started:
        yield started


@pytest.fixture
def visit(browser, url):
    """Opens the page. In the end nothing may have gone wrong on it, and nothing may have been asked of others."""
    wrong, asked, contexts = [], [], []

    def open_page(tab=None, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.locator(".bars .marked").first.wait_for()
        if tab:
            page.get_by_role("tab", name=tab).click()
            page.locator(".bars:visible .marked").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong
    assert not [address for address in asked if not address.startswith((url, "data:", "blob:"))]


def winner(page, name):
    """Waits until the capsule of this class is the longest."""
    page.locator(".bars .marked th", has_text=re.compile(f"^{name}$")).wait_for()


def picture(page, caption):
    return page.locator(f"img[alt^='{caption}']").first


def changed(page, image, before):
    page.wait_for_function("([image, before]) => image.src !== before", arg=[image.element_handle(), before])
    return image.get_attribute("src")


def draw(page, points):
    box = page.locator("canvas").first.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def opened(page, content, name="picture.png"):
    page.locator("input[type=file]").first.set_input_files({"name": name, "mimeType": "image/png", "buffer": content})


def told(page):
    return page.locator(".message").first


def test_it_opens_with_an_answer_and_a_drawn_digit_wins(visit):
    page = visit()
    winner(page, 7)
    page.get_by_role("button", name="Clear").first.click()
    assert "no picture yet" in told(page).inner_text()
    assert page.locator(".bars").count() == 0
    draw(page, ((0.5, 0.15), (0.5, 0.85)))
    winner(page, 1)
    page.get_by_role("button", name="Clear").first.click()
    draw(page, SEVEN)
    winner(page, 7)
    assert told(page).count() == 0
    assert page.locator(".bars tbody tr").count() == 10
    assert "iteration 3" in page.locator("figcaption", has_text="iteration 3").inner_text()


def test_a_digit_can_be_drawn_with_the_keyboard(visit):
    page = visit()
    canvas = page.locator("canvas").first
    canvas.focus()
    for key, times in (("Delete", 1), ("ArrowUp", 9), (" ", 1), ("ArrowDown", 18), (" ", 1)):
        for _ in range(times):
            page.keyboard.press(key)
    winner(page, 1)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Clear"


def test_digits_to_pick_from_are_recognised_and_there_are_others(visit):
    page = visit()
    for name in "123468":
        page.get_by_role("button", name=name, exact=True).first.click()
        winner(page, name)
    strip = page.locator(".strip").first
    before = strip.locator("img").first.get_attribute("src")
    strip.get_by_role("button", name="show others").click()
    changed(page, strip.locator("img").first, before)


def test_a_slider_changes_the_digit_while_it_moves(visit):
    page = visit()
    drawn = picture(page, "what capsule 7 draws")
    slider = page.get_by_label("dimension 3", exact=True)
    start = drawn.get_attribute("src")
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    seen = [start]
    for part in (0.6, 0.7, 0.8, 0.9):
        page.mouse.move(box["x"] + part * box["width"], box["y"] + box["height"] / 2)
        seen.append(changed(page, drawn, seen[-1]))  # before the button is let go
    page.mouse.up()
    assert len(set(seen)) == 5
    assert float(slider.input_value()) > 0.3
    slider.focus()
    page.keyboard.press("ArrowLeft")
    changed(page, drawn, seen[-1])
    page.get_by_role("button", name="Back to zero").click()
    page.wait_for_function("([image, start]) => image.src === start", arg=[drawn.element_handle(), start])


def test_pictures_are_opened_and_what_is_none_is_told(visit):
    page = visit()
    digit = capsnet.open_dataset("mnist", "test").images[1, 0].numpy()  # a 2, made ink on paper
    paper = Image.new("RGB", (500, 400), "white")
    paper.paste(Image.fromarray(255 - digit).resize((200, 200)), (250, 40))
    buffer = io.BytesIO()
    paper.save(buffer, "JPEG")
    opened(page, buffer.getvalue(), "scan.jpg")
    winner(page, 2)
    opened(page, b"this is no picture")
    assert "not a picture that can be read" in told(page).inner_text()
    winner(page, 2)
    opened(page, b"0" * 10_500_000)
    page.locator(".message", has_text="10.5 MB; the limit is 10 MB").wait_for()
    winner(page, 2)
    opened(page, buffer.getvalue())
    told(page).wait_for(state="detached")


def test_two_digits_are_told_apart_and_a_wrong_one_is_forced(visit):
    page = visit("Two digits")
    page.get_by_role("button", name="2 and 0").click()
    captions = page.locator("figcaption:visible", has_text="length")
    captions.filter(has_text=re.compile("^2,")).wait_for()
    captions.filter(has_text=re.compile("^0,")).wait_for()
    both = page.locator("img[alt='2 and 0']:visible")
    before = both.get_attribute("src")
    page.get_by_label("Second capsule").click()
    page.get_by_role("option", name="6", exact=True).click()
    captions.filter(has_text=re.compile("^6,")).wait_for()
    assert page.locator("img[alt='2 and 6']:visible").get_attribute("src") != before


def test_a_digit_is_turned_and_the_cnn_answers_beside(visit):
    page = visit("Turn it")
    said = page.locator("p:visible", has_text="its direction has turned by")
    assert "turned by 0°" in said.inner_text()
    assert page.locator(".bars:visible th", has_text="CNN").count() == 1
    slider = page.locator("input[type=range][aria-label*='Turn to the left']:visible")
    seen = picture(page, "what they see")
    before = seen.get_attribute("src")
    slider.focus()
    for _ in range(25):
        page.keyboard.press("ArrowRight")
    changed(page, seen, before)
    page.wait_for_function("element => !element.innerText.includes('by 0°')", arg=said.element_handle())
    page.get_by_role("button", name="Back to the start").click()
    page.wait_for_function("([image, before]) => image.src === before", arg=[seen.element_handle(), before])


def test_a_figure_is_drawn_to_keep(visit):
    page = visit("Turn it")
    page.get_by_text("The whole sweep: a figure to keep").click()
    page.locator("button:visible", has_text="Draw it").click()
    page.locator("img.figure:visible").wait_for()
    with page.expect_download() as saved:
        page.get_by_text("Save as SVG").click()
    assert saved.value.suggested_filename.endswith(".svg")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_light_and_dark(visit, scheme):
    page = visit(color_scheme=scheme)
    colours = [
        page.evaluate("name => getComputedStyle(document.body)[name]", name) for name in ("color", "backgroundColor")
    ]
    text, paper = (torch.tensor([float(x) for x in re.findall(r"[\d.]+", colour)[:3]]).mean() for colour in colours)
    assert (text > paper) == (scheme == "dark")
    assert abs(text - paper) > 150


def test_it_is_of_use_on_a_phone(visit):
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.get_by_role("button", name="Clear").first.tap()
    told(page).wait_for()
    touch = page.context.new_cdp_session(page)  # Playwright itself can only tap
    box = page.locator("canvas").first.bounding_box()
    places = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in SEVEN]
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": places[:1]})
    for start, end in itertools.pairwise(places):
        for step in range(1, 7):
            point = {axis: start[axis] + (end[axis] - start[axis]) * step / 6 for axis in "xy"}
            touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    winner(page, 7)
    for tab in ("One digit", "Two digits", "Turn it", "A face"):
        page.get_by_role("tab", name=tab).tap()
        page.locator(".bars:visible").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in page.locator(".tools button:visible, .strip button:visible").all():
        assert button.bounding_box()["height"] >= 40  # large enough for a finger
