"""CSV files as people write them."""

import pytest
import soundfile

from atk.data import read_split
from atk.data.side_files import find_events, read_events, read_tags, read_twins, vocabulary_names
from atk.data.tables import ForeignTableError, Table

EXPECTED = {"a.wav": ("a dog barks, then rain falls",), "b.wav": ("rain falls",), "c d.wav": ('a "loud" bell',)}
PLAIN = 'file_name,caption\na.wav,"a dog barks, then rain falls"\nb.wav,rain falls\nc d.wav,"a ""loud"" bell"\n'
VARIANTS = {
    "plain": PLAIN,
    "spaces after commas": PLAIN.replace(",", ", ").replace("barks, ", "barks,"),
    "byte-order mark": "\ufeff" + PLAIN,
    "DOS line endings": PLAIN.replace("\n", "\r\n"),
    "old Mac line endings": PLAIN.replace("\n", "\r"),
    "no newline at the end": PLAIN.rstrip(),
    "empty lines": PLAIN.replace("\n", "\n\n"),
    "lines of commas at the end": PLAIN + ",\n,,,\n",
    "empty cells at the end": PLAIN.replace("\n", ",,,\n"),
    "empty cells at the end of rows": PLAIN.replace("\n", ", ,\n").replace("caption, ,", "caption"),
    "semicolons": PLAIN.replace(",", ";").replace("barks;", "barks,"),
    "tabs": PLAIN.replace(",", "\t").replace("barks\t", "barks,"),
    "all cells quoted": 'file_name,caption\n"a.wav","a dog barks, then rain falls"\n"b.wav","rain falls"\n'
    '"c d.wav","a ""loud"" bell"\n',
    "spaces around names": PLAIN.replace("b.wav", " b.wav ").replace("file_name,caption", " file_name , caption "),
    "an extra column": PLAIN.replace("caption\n", "caption,note\n").replace("rain falls\n", "rain falls,x\n"),
    "captions that span lines": PLAIN.replace("barks, then", "barks,\nthen"),
}


@pytest.fixture
def folder(tmp_path):
    for name in EXPECTED:
        soundfile.write(tmp_path / name, [0.0] * 800, 8000)
    return tmp_path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_the_same_clips(folder, variant, encoding):
    if encoding == "utf-16" and variant == "byte-order mark":
        encoding = "utf-16-le"  # Python's utf-16 writes a mark of its own
    (folder / "train.csv").write_bytes(VARIANTS[variant].encode(encoding))
    split = read_split(folder, "train", "raise")
    assert {clip.file_name.strip(): clip.captions for clip in split.clips} == EXPECTED


def test_names_from_windows_are_found(folder):
    (folder / "sub").mkdir()
    (folder / "a.wav").rename(folder / "sub" / "a.wav")
    (folder / "train.csv").write_text("file_name,caption\nsub\\a.wav,a dog barks\n")
    (clip,) = read_split(folder, "train", "raise").clips
    assert clip.path.samefile(folder / "sub" / "a.wav") and clip.file_name == "sub\\a.wav"


def test_a_row_with_too_many_cells_is_named_with_its_delimiter(folder):
    for delimiter, name in ((",", "commas"), (";", "semicolons"), ("\t", "tabs")):
        row = delimiter.join(("a.wav", "a dog", "barks"))
        (folder / "train.csv").write_text(f"file_name{delimiter}caption\n{row}\nb.wav{delimiter}rain\n")
        split = read_split(folder, "train")
        assert split.skipped == [
            ("a.wav", f"train.csv line 2 has 3 fields for 2 columns; quote captions that contain {name}")
        ]


@pytest.mark.parametrize(
    ("rows", "line", "reason"),
    [
        ('a.wav,x\nb.wav,"rain\nc d.wav,y\n', 3, "a quote is never closed"),
        ('a.wav,"x\ny"\nb.wav,"rain"falls\n', 4, "expected after"),
        ('a.wav,"' + "x" * 200_000 + '"\n', 2, "field larger than field limit"),
    ],
)
def test_the_line_where_the_trouble_starts_is_named(folder, rows, line, reason):
    (folder / "train.csv").write_text("file_name,caption\n" + rows)
    with pytest.raises(ValueError, match=rf"train\.csv line {line}: not well-formed CSV \(.*{reason}"):
        read_split(folder, "train")


def test_side_files_are_read_in_the_same_variants(tmp_path):
    (tmp_path / "events.csv").write_bytes(
        "\ufefffile_name; event; phrase; start; end\na.wav; dog; a dog; 0.5; 1,5\n".encode()
    )
    with pytest.raises(ValueError, match=r"events\.csv, line 2: start and end must be seconds, got '0\.5', '1,5'"):
        read_events(tmp_path / "events.csv")
    (tmp_path / "events.csv").write_text("file_name, event, phrase, start, end\n\na.wav, dog, a dog, 0.5, 1.5,,\n")
    assert [event[2:] for event in read_events(tmp_path / "events.csv")] == [("a dog", 0.5, 1.5)]
    (tmp_path / "tags.csv").write_text("file_name, dog, rain,\na.wav, 1, 0,\n")
    assert read_tags(tmp_path / "tags.csv") == (["dog", "rain"], {"a.wav": [True, False]})
    (tmp_path / "twins.csv").write_text("file_name\ttwin\nb.wav\ta.wav\n")
    assert read_twins(tmp_path / "twins.csv") == [("a.wav", "b.wav")]


def write_vocabularies(folder, **vocabularies):
    (folder / "vocabularies").mkdir()
    for name, tags in vocabularies.items():
        (folder / "vocabularies" / f"{name}.txt").write_text(tags)


def test_joined_tags_give_what_columns_of_tags_give(tmp_path):
    write_vocabularies(tmp_path, all="dog\nrain, heavy\n\ncat\n", top="cat\ndog\n")
    (tmp_path / "tags.csv").write_text('file_name,tags\na.wav,"cat; rain, heavy"\nb.wav,\n"c, d.wav",dog\n')
    expected = {"a.wav": [False, True, True], "b.wav": [False] * 3, "c, d.wav": [True, False, False]}
    assert read_tags(tmp_path / "tags.csv") == (["dog", "rain, heavy", "cat"], expected)
    top = {"a.wav": [True, False], "b.wav": [False, False], "c, d.wav": [False, True]}
    assert read_tags(tmp_path / "tags.csv", "top") == (["cat", "dog"], top)
    assert list(read_tags(tmp_path / "tags.csv")[1]) == list(expected)


@pytest.mark.parametrize(
    ("table", "vocabulary", "message"),
    [
        ("a.wav,cow", None, "line 2: no vocabulary contains the tag 'cow'"),
        ("", None, "at least one line, and its vocabulary all at least one tag"),
        ("a.wav,dog", "none", r"none\.txt is missing; vocabularies there: all, latin"),
    ],
)
def test_joined_tags_that_cannot_be_read(tmp_path, table, vocabulary, message):
    write_vocabularies(tmp_path, all="dog\n")
    (tmp_path / "vocabularies" / "latin.txt").write_text("ok\n")
    (tmp_path / "tags.csv").write_text(f"file_name,tags\n{table}\n")
    with pytest.raises(ValueError, match=message):
        read_tags(tmp_path / "tags.csv", vocabulary)
    (tmp_path / "vocabularies" / "latin.txt").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match=r"latin\.txt: not UTF-8"):
        read_tags(tmp_path / "tags.csv")


def test_joined_tags_need_a_vocabulary(tmp_path):
    with pytest.raises(ValueError, match=r"tags\.csv is missing"):
        vocabulary_names(tmp_path / "tags.csv")
    (tmp_path / "tags.csv").write_text("file_name,tags\na.wav,dog\n")
    with pytest.raises(ValueError, match=r"vocabularies has no vocabulary NAME\.txt"):
        vocabulary_names(tmp_path / "tags.csv")
    (tmp_path / "tags.csv").write_text("file_name,tags\na.wav,dog\n")
    with pytest.raises(ValueError, match=r"NAME\.txt is missing; vocabularies there: none"):
        read_tags(tmp_path / "tags.csv")
    (tmp_path / "tags.csv").write_text("file_name,dog\na.wav,1\n")
    with pytest.raises(ValueError, match="has no column tags, so that it has no vocabulary all"):
        read_tags(tmp_path / "tags.csv", "all")


@pytest.mark.parametrize(
    "foreign", [b"Subject,Start Date\nmeeting,2026-01-01\n", b"\x89PNG\r\n\x1a\n\x00\xff", b"", b"\x00" * 5000]
)
def test_a_file_of_the_same_name_that_belongs_to_something_else_is_passed_over(tmp_path, foreign):
    audio = tmp_path / "a" / "b" / "clip.wav"
    audio.parent.mkdir(parents=True)
    (tmp_path / "events.csv").write_text("file_name,event,phrase,start,end\na/b/clip.wav,dog,a dog,0,1\n")
    (tmp_path / "a" / "events.csv").write_bytes(foreign)
    assert [event.phrase for event in find_events(audio)] == ["a dog"]
    with pytest.raises(ForeignTableError, match=r"events\.csv: (lacks the column|not UTF-8)"):
        find_events(audio, tmp_path / "a" / "events.csv")


def test_a_table_is_read_row_by_row(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n" + "1,2\n" * 1000 + '3,"\n')
    rows = Table.open(tmp_path / "a.csv", ("a",)).records()
    assert next(rows) == (2, {"a": "1", "b": "2"})
    with pytest.raises(ValueError, match="line 1002"):
        list(rows)


def test_a_name_with_a_leading_space_and_a_quote_inside_a_cell(folder):
    (folder / "a.wav").rename(folder / " a.wav")
    (folder / "train.csv").write_text('file_name,caption\n a.wav,a dog\nb.wav, "loud" music plays\n')
    split = read_split(folder, "train", "raise")
    assert {clip.file_name: clip.captions for clip in split.clips} == {
        " a.wav": ("a dog",),
        "b.wav": ('"loud" music plays',),
    }


def test_spaces_after_commas_in_rows_but_not_in_the_header(folder):
    (folder / "train.csv").write_text('file_name,caption\na.wav, "a dog, then rain"\nb.wav, rain\n')
    split = read_split(folder, "train", "raise")
    assert [clip.captions for clip in split.clips] == [("a dog, then rain",), ("rain",)]


def test_spellings_of_a_name_are_one_clip(folder):
    (folder / "train.csv").write_text("file_name,caption\na.wav,one\na.wav ,two\n./a.wav,three\n")
    (clip,) = read_split(folder, "train", "raise").clips
    assert clip.file_name == "a.wav" and clip.captions == ("one", "two", "three")
