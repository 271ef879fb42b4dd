"""The command that builds an index, and searches in it."""

import json
from pathlib import Path

import pytest

from atk.cli.main import main


def printed(capsys, *arguments):
    arguments = [str(argument) for argument in arguments]
    main([*arguments, "--device", "cpu"])
    return capsys.readouterr().out


@pytest.mark.slow
def test_an_index_takes_the_place_of_the_model(tiny_run, tiny_data, tmp_path, capsys):
    out = str(tmp_path / "index")
    build = ["index", str(tiny_run), str(tiny_data), "--out", out, "--context-seconds", "0"]
    count = int(printed(capsys, *build).removeprefix(f"{out}: ").removesuffix(" added, 0 changed, 0 dropped, 0 kept\n"))
    target = f"qdrant:{tmp_path / 'q'}#tones"
    assert printed(capsys, *build, "--to", target) == (
        f"{out}: 0 added, 0 changed, 0 dropped, {count} kept\n{target}: {count} points\n"
    )
    queries = ["a high tone", "a low tone"]
    for score in ("global", "max_mean"):
        options = ("--score", score, "--top", "3", "--json")
        wanted = json.loads(printed(capsys, "search", tiny_run, tiny_data, *queries, *options, "--workers", "0"))
        for more in ((), ("--exact",), ("--candidates", str(count))):
            mine = json.loads(printed(capsys, "search", out, *queries, *options, *more))
            for ours, theirs in zip(mine["queries"], wanted["queries"], strict=True):
                scores = [hit["score"] for hit in ours["hits"]]
                assert ours["query"] == theirs["query"] and len(scores) == 3
                assert scores == pytest.approx([hit["score"] for hit in theirs["hits"]], abs=0.01)
    result = json.loads(printed(capsys, "search", out, "a tone", "--moments", "--json", "--figures", tmp_path / "p"))
    assert Path(result["queries"][0]["hits"][0]["picture"]).is_file()
    assert len(printed(capsys, "search", out, "a tone").splitlines()) == min(10, count)
    for options, message in (
        (["--clip-seconds", "2"], "clip_seconds: fixed when the index was made"),
        (["--long-clips", "crop"], "long_clips: an index holds windows"),
        (["--candidates", "0"], "candidates must be at least 1"),
        (["--moments", "--exact"], "exact: moments are looked for in all frames; leave it out"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["search", out, "a tone", "--device", "cpu", *options])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*build, "--to", "qdrant"])
    assert "to: must be qdrant: and the URL of a server or a folder, got 'qdrant'" in capsys.readouterr().err
