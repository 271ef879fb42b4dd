"""The captions and the curves of the page, the messages of errors, and which files are served; without a browser."""

import json
import os
import socket

import pytest
import soundfile
import torch
from support.clips import write_clip
from support.tiny_captioner import tiny

from atk.app import captions as captions_module
from atk.app.captions import four_captions
from atk.app.curves import draw_curves, groups_of, read_curves
from atk.app.messages import message_of
from atk.app.server import UploadsOnly, check_port, delete_oldest
from atk.data import AudioError
from atk.eval.captioning import caption_file

OPTIONS = {"beams": 1, "generation": None}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for name, pitch in (("clip", 300), ("reference", 150)):
        write_clip(folder / f"{name}.wav", pitch)
    soundfile.write(folder / "silence.wav", torch.zeros(8000).numpy(), 16000)
    return {path.stem: str(path) for path in folder.iterdir()}


def test_the_four_captions_are_those_of_atk_caption(files):
    model = tiny(difference="mask")
    clip, reference = files["clip"], files["reference"]
    rows = four_captions(model, clip, reference, 1.0, OPTIONS)
    wanted = [
        caption_file(model, *given, clip_seconds=1.0, **OPTIONS, **more)
        for given, more in (
            ((clip,), {}),
            ((reference,), {}),
            ((clip, [reference]), {}),
            ((clip, [reference]), {"common": True}),
        )
    ]
    assert [row[1] for row in rows] == [captions[0][2] for captions in wanted]
    assert four_captions(model, clip, None, 1.0, OPTIONS) == rows[:1]


@pytest.mark.parametrize(
    ("difference", "reference", "reasons"),
    [("none", "reference", 2), ("subtraction", "reference", 1), ("mask", "silence", 1)],
)
def test_what_a_model_cannot_describe_has_a_reason(files, difference, reference, reasons):
    rows = four_captions(tiny(difference=difference), files["clip"], files[reference], 1.0, OPTIONS)
    assert len(rows) == 4 and [row[1].startswith("[") for row in rows] == [False] * (4 - reasons) + [True] * reasons


def test_captions_need_a_clip_that_is_not_too_long(files, monkeypatch):
    with pytest.raises(ValueError, match="drop a clip"):
        four_captions(tiny(), None, files["clip"], 1.0, OPTIONS)
    monkeypatch.setattr(captions_module, "check_length", lambda file: (_ for _ in ()).throw(ValueError("too long")))
    with pytest.raises(ValueError, match="too long"):
        four_captions(tiny(), files["clip"], None, 1.0, OPTIONS)


def test_curves_are_read_from_damaged_logs_and_drawn(tmp_path):
    rows = [{"step": step, "loss": 1 / step, "aligned": 0.5, "lr": 1e-3, "seconds": step} for step in (1, 2)]
    rows += [{"step": 2, "val/R@1": 3.0, "val/mAP@10": float("nan")}, {"step": 3, "logit_scale": 2.0, "note": "text"}]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:2], "null", "[1]", "\0", *lines[2:], lines[0][:9]]))
    curves = read_curves(tmp_path)
    assert curves == {
        "loss": [(1, 1.0), (2, 0.5)],
        "aligned": [(1, 0.5), (2, 0.5)],
        "lr": [(1, 1e-3), (2, 1e-3)],
        "val/R@1": [(2, 3.0)],
        "logit_scale": [(3, 2.0)],
    }
    assert groups_of(list(curves)) == [
        ("loss", ["loss", "aligned"]), ("val/R@1", ["val/R@1"]), ("lr", ["lr"]), ("logit_scale", ["logit_scale"]),
    ]  # fmt: skip
    assert draw_curves(curves, "a $run").startswith(b"\x89PNG")
    for text in ("", "{}\n", "step\n"):
        (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"no metrics\.jsonl with values"):
            read_curves(tmp_path)


def test_messages_have_one_line_without_folders():
    assert message_of(AudioError("/home/me/a.wav", "not\naudio")) == "a.wav: not audio"
    assert message_of(FileNotFoundError(2, "No such file", "/home/me/a.wav")) == "No such file"
    assert message_of(ValueError("x" * 1000)) == "x" * 300 + "..."
    assert message_of(KeyError("bug")) is None


def test_only_uploads_are_served(tmp_path):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (tmp_path / "secret").write_text("secret")
    (uploads / "link").symlink_to(tmp_path / "secret")
    allows = UploadsOnly(lambda *_: None, uploads).allows
    assert allows("/") and allows("/assets/index.js") and allows("/gradio_api/queue/join")
    assert allows(f"/gradio_api/file={uploads}/abc/a.wav")
    for name in (
        f"{tmp_path}/secret", f"{uploads}/../secret", f"{uploads}/link", f"{uploads}-more/a", "a.wav", "../secret",
        "http://example.com/a.wav", f"file://{uploads}/a.wav", "/etc/passwd\0", "~/a.wav", f"{uploads}/" + "../" * 99,
    ):  # fmt: skip
        assert not allows(f"/gradio_api/file={name}"), name
    assert not allows(f"/gradio_api/file/{uploads}/a.wav") and not allows("/gradio_api/proxy=http://example.com")


def test_the_oldest_uploads_are_deleted_first(tmp_path):
    for age, name in enumerate(("new", "older", "oldest")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    delete_oldest(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "older"]
    delete_oldest(tmp_path, 20)
    assert len(list(tmp_path.iterdir())) == 2


def test_ports_that_cannot_be_used_are_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port: 127.0.0.1:{port} cannot be used"):
            check_port("127.0.0.1", port)
    for bad in (0, -1, 65536):
        with pytest.raises(ValueError, match=r"port must be in 1\.\.65535"):
            check_port("127.0.0.1", bad)
    with pytest.raises(ValueError, match="cannot be used"):
        check_port("no such host", 7860)
