"""The commands that use a model take every source of one: runs, checkpoints, and published files."""

import csv
import json
import re

import numpy as np
import pytest
import soundfile
import torch
from support.fake_model import FakeModel
from support.sources import SOURCES
from support.tiny_captioner import tiny as tiny_captioner

import atk
from atk.cli.main import main
from atk.eval.retrieval import embed_split, evaluate_retrieval
from atk.eval.tables import EmbeddedFolder, write_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [["file_name", "caption"]]
    for index, seconds in enumerate((0.7, 0.4, 1.1)):
        wave = 0.1 * torch.randn(int(seconds * 16000), generator=torch.Generator().manual_seed(index))
        soundfile.write(folder / f"{index}.wav", wave.numpy(), 16000, subtype="FLOAT")
        rows.append([f"{index}.wav", f"a dog barks {index}"])
    with (folder / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def options(source, tokenizer):
    return [str(source), "--device", "cpu", "--workers", "0"] + (["--tokenizer", tokenizer] if tokenizer else [])


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_every_command_takes_every_source(name, folder, tmp_path, capsys):
    source, tokenizer = SOURCES[name](tmp_path)
    arguments = options(source, tokenizer)
    model = atk.load(source, device="cpu", tokenizer=tokenizer)
    capsys.readouterr()
    for score in ("global", "max_mean", "both"):
        main(["evaluate", *arguments, "--data", str(folder), "--score", score])
        result = json.loads(capsys.readouterr().out)
        assert result["score"] == score and result["clips"] == 3
    main(["search", *arguments, str(folder), "a dog", "rain", "--json", "--score", "both"])
    ranked = json.loads(capsys.readouterr().out)["queries"]
    similarity = model.similarity([folder / f"{index}.wav" for index in range(3)], ["a dog", "rain"], score="both")
    for query, column in zip(ranked, similarity.T, strict=True):
        assert [hit["score"] for hit in query["hits"]] == pytest.approx(sorted(column.tolist(), reverse=True), abs=1e-5)
    main(["embed", *arguments, str(folder), "--out", str(tmp_path / "vectors.npy")])
    with (tmp_path / "vectors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["0", "1", "2"]
    names = [row["file_name"] for row in rows]
    vectors = torch.from_numpy(np.load(tmp_path / "vectors.npy"))
    assert sorted(names) == ["0.wav", "1.wav", "2.wav"]
    expected = model.embed_audio([folder / name for name in names])
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)
    map_options = [word for word in arguments if word not in ("--workers", "0")]
    main(["align", *map_options, str(folder / "0.wav"), "a dog barks", "--out", str(tmp_path / "map.png")])
    assert (tmp_path / "map.csv").read_text().count("\n") == 4


def test_queries_are_listed_one_after_the_other(folder, tmp_path, capsys):
    arguments = options(*SOURCES["saved"](tmp_path))
    main(["search", *arguments, str(folder), "a dog", "--top", "2"])
    single = capsys.readouterr().out
    assert len(single.splitlines()) == 2
    main(["search", *arguments, str(folder), "a dog", "rain", "--top", "2"])
    both = capsys.readouterr().out
    assert both.startswith(f"a dog\n{single}\nrain\n") and len(both.splitlines()) == 7


def test_scores_rank_differently(folder, tmp_path):
    """Of a model whose global vectors are all alike, only frames and tokens tell clips apart."""

    class Blind(FakeModel):
        def embed_audio(self, audio, lengths):
            embedding = super().embed_audio(audio, lengths)
            return embedding._replace(pooled=torch.ones_like(embedding.pooled) / 2)

    from support.fake_model import RATE, sound

    for name in ("dog", "bell", "engine"):
        soundfile.write(tmp_path / f"{name}.wav", sound(name, name), RATE)
    (tmp_path / "test.csv").write_text("file_name,caption\ndog.wav,dog\nbell.wav,bell bell\nengine.wav,engine\n")
    split = embed_split(Blind(), tmp_path, frames=True)
    right = {
        score: evaluate_retrieval(Blind(), split, score)["text_to_audio"]["R@1"] for score in ("global", "max_mean")
    }
    assert right["max_mean"] == 100 and right["global"] < 100
    assert evaluate_retrieval(Blind(), split, "both")["text_to_audio"]["R@1"] == 100
    with pytest.raises(ValueError, match="score: 'max_mean' needs a split embedded with frames=True"):
        evaluate_retrieval(Blind(), embed_split(Blind(), tmp_path), "max_mean")


def test_parquet_tables(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    vectors = torch.randn(2, 5)
    assert write_table(tmp_path / "x.parquet", EmbeddedFolder(["b.wav", "a\udcff.wav"], vectors, [])) == [
        tmp_path / "x.parquet"
    ]
    table = parquet.read_table(tmp_path / "x.parquet")
    assert table["file_name"].to_pylist() == ["b.wav", r"a\xff.wav"]
    assert torch.equal(torch.tensor(table["vector"].to_pylist()), vectors)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embed", "SOURCE", "FOLDER", "--out", "x.txt"], "out: must end in .npy or .parquet, got 'x.txt'"),
        (["embed", "SOURCE", "FOLDER", "--out", "FOLDER/test.npy"], "test.csv exists and is not a list of file names"),
        (["embed", "SOURCE", "elsewhere", "--out", "x.npy"], "elsewhere: no such"),
        (["search", "SOURCE", "FOLDER", "dog", " "], "query must contain at least one word, got an empty text"),
        (["search", "SOURCE", "FOLDER", "dog", "--score", "mean"], "--score must be one of"),
        (["search", "SOURCE", "FOLDER", "dog", "--long-clips", "crop"], "takes clips of any length whole, got 'crop'"),
        (["search", "CAPTIONER", "FOLDER", "dog"], "holds a Captioner, but this command needs a CLAP"),
        (["caption", "SOURCE", "FOLDER/0.wav"], "holds a CLAP, but this command needs a Captioner"),
        (["evaluate", "CAPTIONER", "--data", "FOLDER", "--score", "both"], "score: .* which has no such option"),
        (
            ["search", "FOLDER/0.wav", "FOLDER", "dog"],
            r"weights in .*0\.wav: damaged, or not a file that torch\.save wrote",
        ),
        (["search", "nowhere.pt", "FOLDER", "dog"], "'nowhere.pt' is neither a local folder nor a hub model"),
    ],
)
def test_mistakes(words, message, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "SOURCE" in words:
        SOURCES["saved"](tmp_path)
    if "CAPTIONER" in words:
        tiny_captioner().save_pretrained("captioner")
    places = {"SOURCE": "saved", "CAPTIONER": "captioner"}
    with pytest.raises(SystemExit) as end:
        main([places.get(word, word.replace("FOLDER", str(folder))) for word in words] + ["--device", "cpu"])
    error = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(error) == 1
    assert re.search(message, error[0])


def test_an_interrupted_write_keeps_the_files_of_before(tmp_path, monkeypatch):
    out = tmp_path / "x.npy"
    write_table(out, EmbeddedFolder(["a.wav"], torch.ones(1, 2), []))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("atk.eval.tables.csv.writer", None)
    with pytest.raises(TypeError):
        write_table(out, EmbeddedFolder(["b.wav", "c.wav"], torch.zeros(2, 2), []))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
