"""Screenshots of the pages that `atk app` serves, for docs/app.md.

    python tests/support/app_screenshots.py MOMENTS_URL QUERY CAPTIONS_URL CLIP REFERENCE OUT

The two URLs are those of `atk app RUN --data FOLDER` and of `atk app CAPTIONER`.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")


def shoot(browser, url, actions, path):
    page = browser.new_page(viewport={"width": 1100, "height": 500})
    page.goto(url, wait_until="domcontentloaded")
    actions(page)
    page.wait_for_timeout(2000)  # until the page stands still
    page.screenshot(path=path, full_page=True)
    page.close()


def search(page, query):
    page.locator("#atk-query textarea, #atk-query input").first.fill(query)
    page.locator("#atk-search").click()
    page.locator(".atk-player img").wait_for()
    page.evaluate("document.querySelector('.atk-player audio').currentTime += 1")


def caption(page, files):
    page.get_by_role("tab", name="Captions").click()
    for name, file in zip(("clip", "reference"), files, strict=True):
        page.locator(f"#atk-{name} input[type=file]").set_input_files(file)
        page.locator(f"#atk-{name} #waveform, #atk-{name} audio").first.wait_for(state="attached")
        page.wait_for_timeout(2000)
    page.locator("#atk-caption").click()
    page.get_by_text("in common").first.wait_for()


def training(page):
    page.get_by_role("tab", name="Training").click()
    page.locator("#atk-curves img").wait_for()


def main(moments, query, captions, clip, reference, out):
    out = Path(out)
    browsers = filter(None, map(shutil.which, BROWSERS))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=next(browsers), args=["--no-sandbox"])
        shoot(browser, moments, lambda page: search(page, query), out / "app_search.png")
        shoot(browser, captions, lambda page: caption(page, (clip, reference)), out / "app_captions.png")
        shoot(browser, captions, training, out / "app_training.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
