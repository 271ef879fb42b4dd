"""The page in headless Chromium: a query, a click, and a position that moves."""

import json

import pytest
import soundfile
from support.app_page import PATIENCE, find_browser, served
from support.fake_model import RATE, FakeModel, sound

from atk.app.library import Library, Origin, index_folder
from atk.eval.moments import MomentConfig

pytest.importorskip("gradio", reason="extra app")
playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio"),
]
ORIGIN = Origin("model", None, 1.0)
STATE = """() => {
  const box = document.querySelector('.atk-player');
  const audio = box.querySelector('audio');
  return {time: audio.currentTime, seconds: audio.duration, paused: audio.paused, error: audio.error,
          left: parseFloat(box.querySelector('.atk-cursor').style.left), wide: box.querySelector('img').naturalWidth};
}"""


@pytest.fixture
def browser_page():
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = driver.chromium.launch(executable_path=find_browser(), args=options)
        page = browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.failures = []
        page.on("pageerror", lambda error: page.failures.append(str(error)))
        page.on("request", lambda request: page.failures.append(request.url) if outside(request.url) else None)
        yield page
        browser.close()


def outside(url):
    return not url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def test_a_query_a_click_and_a_picture(browser_page, tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    soundfile.write(folder / "a.wav", sound(*[""] * 60, *["dog"] * 5, "bell", *[""] * 60), RATE)
    soundfile.write(folder / "<b>b.wav", sound(*[""] * 50, "bell", *[""] * 50), RATE)
    model = FakeModel()
    library = Library(model, ORIGIN, index_folder(model, ORIGIN, tmp_path, tmp_path / "index"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": k, "loss": 1 / k}) + "\n" for k in range(1, 9)))
    page = browser_page
    with served(name="fake", library=library, moments=MomentConfig(smooth=0.0, threshold=0.5), run=run) as server:
        page.goto(server.address, wait_until="domcontentloaded")
        page.locator("#atk-query textarea, #atk-query input").first.fill("bell")
        page.locator("#atk-search").click()
        page.wait_for_function("document.querySelector('.atk-player audio')?.currentTime > 0")
        first = page.evaluate(STATE)
        assert first["wide"] > 500 and first["error"] is None and first["paused"]
        assert first["time"] == pytest.approx(4.0, abs=0.01)  # the moment, after the seconds shown before it
        title = page.locator(".atk-player figcaption").inner_text()
        cells = [page.locator(f"#atk-moments [data-testid='cell-{row}-1']") for row in range(2)]
        assert {cell.inner_text().strip() for cell in cells} == {f"{folder.name}/a.wav", f"{folder.name}/<b>b.wav"}
        cells[1].click()
        page.wait_for_function(
            "title => document.querySelector('.atk-player figcaption').innerText != title", arg=title
        )
        page.wait_for_function("document.querySelector('.atk-player audio').currentTime > 4.2")  # plays from there
        earlier = page.evaluate(STATE)
        page.wait_for_function(
            "time => document.querySelector('.atk-player audio').currentTime > time + 0.2", arg=earlier["time"]
        )
        assert page.evaluate(STATE)["left"] > earlier["left"] > first["left"]
        page.locator("#atk-query textarea, #atk-query input").first.fill("")
        page.locator("#atk-search").click()
        page.get_by_text("at least one word").first.wait_for()
        page.get_by_role("tab", name="Training").click()
        page.locator("#atk-curves img").wait_for()
        assert page.evaluate("document.querySelector('#atk-curves img').naturalWidth") > 500
        assert page.failures == []
    library.close()
