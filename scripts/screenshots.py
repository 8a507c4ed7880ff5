"""Take the pictures of the explorer that the docs show: python scripts/screenshots.py [BROWSER]

BROWSER is the program of a Chromium or Chrome; by default `chromium`.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
DESKTOP = {"viewport": {"width": 1180, "height": 900}, "color_scheme": "light"}
PHONE = {**DESKTOP, "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True}
THREE = ((0.32, 0.22), (0.6, 0.2), (0.66, 0.33), (0.47, 0.46), (0.68, 0.58), (0.66, 0.76), (0.44, 0.83), (0.3, 0.74))


def draw(page: Page) -> None:
    """A three, with the mouse."""
    page.get_by_role("button", name="Clear").first.click()
    box = page.locator("canvas").first.bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in THREE]
    page.mouse.move(*places[0])
    page.mouse.down()
    for x, y in places[1:]:
        page.mouse.move(x, y, steps=5)
    page.mouse.up()
    page.mouse.move(0, 0)
    page.wait_for_timeout(800)


def picture(page: Page, name: str, full: bool = True) -> None:
    page.screenshot(path=DOCS / f"{name}.png", full_page=full)
    print(DOCS / f"{name}.png")


def main(browser_path: str | None) -> None:
    command = [sys.executable, "-m", "capsnet", "explore", "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        url = server.stdout.readline().split()[0]
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for name, options in (("explorer", DESKTOP), ("explorer-phone", PHONE)):
            page = browser.new_page(**options)
            page.goto(url)
            page.locator(".bars .marked").first.wait_for()
            draw(page)
            page.evaluate("document.querySelector('.hint').scrollIntoView()")
            picture(page, name, full=name == "explorer")
        page = browser.new_page(**DESKTOP)
        page.goto(url)
        page.get_by_role("tab", name="Two digits").click()
        page.get_by_role("button", name="9 and 8").click()
        page.wait_for_timeout(800)
        picture(page, "explorer-two")
        page.get_by_role("tab", name="Turn it").click()
        slider = page.locator("input[type=range]:visible").first
        slider.focus()
        for _ in range(25):
            page.keyboard.press("ArrowRight")
        page.wait_for_timeout(800)
        picture(page, "explorer-turn")
        page.get_by_role("tab", name="A face").click()
        mouth = page.locator(".part").last
        box = mouth.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 20, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] - 40, box["y"] - 110, steps=8)
        page.mouse.up()
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)
        picture(page, "explorer-face")
        browser.close()
        server.terminate()


main(sys.argv[1] if len(sys.argv) > 1 else shutil.which("chromium"))
