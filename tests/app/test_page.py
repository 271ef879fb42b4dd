"""The page as a server: hostile requests get a message of one line, and memory does not grow."""

import gc
import http.client
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.app_page import file_data, served
from support.fake_model import RATE, FakeModel, sound

from atk.app import server
from atk.app.library import LONGEST_UPLOAD, Library, Origin, index_folder
from atk.eval.moments import MomentConfig

pytest.importorskip("gradio", reason="extra app")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio")]
PLAIN = MomentConfig(smooth=0.0, threshold=0.5)
ORIGIN = Origin("model", None, 1.0)


def wav(samples, rate=RATE, subtype="FLOAT"):
    content = io.BytesIO()
    soundfile.write(content, np.asarray(samples, dtype=np.float32), rate, format="WAV", subtype=subtype)
    return content.getvalue()


DOG = wav(sound("", "dog", "dog", ""))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    (folder / "audio").mkdir()
    (folder / "secret.wav").write_bytes(DOG)
    for name, *sounds in (("a", "dog", "", "bell"), ("b", "engine", "", "")):
        (folder / "audio" / f"{name}.wav").write_bytes(wav(sound(*sounds)))
    model = FakeModel()
    library = Library(model, ORIGIN, index_folder(model, ORIGIN, folder / "audio", folder / "index"))
    run = folder / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    with served(name="<b>fake</b>", library=library, moments=PLAIN, run=run) as page:
        page.folder = folder
        yield page
    library.close()


def search(page, query="dog", file=None, top=10):
    return page.call("search", query, file, top)


def test_a_query_gets_tables_and_a_player(page):
    event, (_, moments, clips, shown) = search(page, "dog, then bell")
    assert event == "complete"
    assert moments["data"] == [["1.000", "a.wav", "0.00-0.30 s (0.00-0.10, 0.20-0.30)"]]
    assert {row[1] for row in clips["data"]} == {"a.wav", "b.wav"}
    assert "data:image/png" in shown and "data:audio/flac" in shown and 'data-from="0.00000"' in shown
    event, (_, moments, clips, _) = search(page, "dog", page.upload("my dog.wav", DOG))
    assert moments["data"] == [["1.000", "my dog.wav", "0.10-0.30 s"]] and not any(map(any, clips["data"]))
    event, (curves,) = page.call("curves")
    assert event == "complete" and "data:image/png" in curves


QUERIES = {
    "empty": ("", None, 10),
    "null": (None, None, 10),
    "spaces": (" \t\n", None, 10),
    "punctuation": ("?!.", None, 10),
    "long": ("dog " * 1000, None, 10),
    "no results": ("dog", None, 0),
    "many results": ("dog", None, 10**9),
    "not a count": ("dog", None, "many"),
    "a file that is a number": ("dog", 7, 10),
    "a file without a path": ("dog", {"meta": {"_type": "gradio.FileData"}}, 10),
    "too few values": ("dog",),
}


@pytest.mark.parametrize("case", QUERIES)
def test_hostile_queries_get_a_message(page, case):
    assert_refused(page, *QUERIES[case])


FILES = {
    "text": ("a.wav", b"not audio"),
    "picture": ("a.wav", b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "page": ("a.html", b"<script>alert(1)</script>"),
    "empty": ("a.wav", b""),
    "no samples": ("a.wav", wav([])),
    "truncated": ("a.wav", DOG[: len(DOG) // 2]),
    "lying header": ("a.wav", DOG.replace(b"data", b"data" + struct.pack("<I", 2**30), 1)),
    "NaN": ("a.wav", wav([0.0, float("nan")] * 400)),
    "infinite": ("a.wav", wav([0.0, float("inf")] * 400)),
    "rate of 1 Hz": ("a.wav", wav(np.zeros(10), rate=1)),
    "too long": ("a.flac", None),
    "damaged mp3": ("a.mp3", b"\xff\xfb\x90\x00" + bytes(417)),
    "script in the name": ("<img src=x onerror=alert(1)>.wav", b"not audio"),
    "huge name": ("a" * 5000 + ".wav", b"not audio"),
    "path in the name": ("../../../../secret.wav", b"not audio"),
}


@pytest.mark.parametrize("case", FILES)
def test_hostile_files_get_a_message(page, case, capfd):
    name, content = FILES[case]
    if content is None:
        content = io.BytesIO()
        soundfile.write(content, np.zeros(int(LONGEST_UPLOAD * 1000) + 1000), 1000, format="FLAC")
        content = content.getvalue()
    before = set(page.folder.rglob("*"))
    file = page.upload(name, content)
    if isinstance(file, dict):
        capfd.readouterr()
        assert_refused(page, "dog", file, 10)
        assert "Traceback" not in capfd.readouterr().err
    assert isinstance(file, dict) or 400 <= file < 500
    assert set(page.folder.rglob("*")) == before


def assert_refused(page, *values):
    event, message = page.call("search", *values)
    assert event == "error", message
    text = json.dumps(message)
    assert "Traceback" not in text and str(page.uploads) not in text and "<img" not in text and len(text) < 500
    assert search(page)[0] == "complete"  # the page still works


def test_files_that_were_not_uploaded_are_not_read(page):
    secret = page.folder / "secret.wav"
    link = page.uploads / "link.wav"
    link.symlink_to(secret)
    inside = page.upload("a.wav", DOG)["path"]
    for path in (
        str(secret), "/etc/passwd", f"{page.uploads}/../{page.folder}/secret.wav", f"file://{secret}", str(link),
        "../" * 20 + str(secret), f"{Path(inside).parent}/..%2f..%2f{secret}", "\0", "", str(page.uploads),
    ):  # fmt: skip
        event, message = search(page, "dog", file_data(path))
        assert event == "error" and "Traceback" not in json.dumps(message), path


def status_of(page, path):
    host = page.address.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read()


def test_only_uploads_are_served(page):
    mine = page.upload("a.wav", DOG)["path"]
    assert status_of(page, f"/gradio_api/file={mine}") == (200, DOG)
    (page.uploads / "link").symlink_to(page.folder / "secret.wav")
    encoded = "".join(f"%{byte:02x}" for byte in str(page.folder / "secret.wav").encode())
    audio = page.folder / "audio" / "a.wav"
    for path in (
        f"file={page.folder}/secret.wav", f"file={audio}", f"file={encoded}", "file=/etc/passwd",
        "file=../../../../../../etc/passwd", "file=%2e%2e/%2e%2e/etc/passwd", f"file={mine}/../../../secret.wav",
        f"file={page.uploads}/%2e%2e/{page.folder.name}/secret.wav", f"file={page.uploads}/link", f"file/{mine}",
        "file=http://127.0.0.1:1/", "proxy=http://127.0.0.1:1/", "file=%00", "file=", "file=//etc/passwd",
    ):  # fmt: skip
        status, body = status_of(page, f"/gradio_api/{path}")
        assert status in (400, 403, 404, 405) and DOG not in body and b"root:" not in body, path
        assert status_of(page, f"/{path}")[1].find(b"root:") < 0


def test_uploads_are_limited_in_size(page):
    assert page.upload("a.wav", bytes(server.UPLOAD_BYTES + 1000)) == 413


def test_titles_are_not_markup(page):
    config = page.client.get("/config").text
    assert "\\u003cb\\u003efake" in config or "<b>fake</b>" in config  # as a value, which the page shows as text


def resident():
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) / 1024


@pytest.mark.exhaustive
def test_memory_and_files_do_not_grow(page):
    file = page.upload("a.wav", DOG)
    for _ in range(30):  # until caches are full
        assert search(page)[0] == "complete"
    before, files = resident(), len(list(page.uploads.rglob("*")))
    for place in range(200):
        assert search(page, "dog, then bell", file if place % 2 else None)[0] == "complete"
    grown = resident() - before
    assert grown < 40, f"{grown:.1f} MiB more than {before:.0f} MiB"
    assert len(list(page.uploads.rglob("*"))) == files
