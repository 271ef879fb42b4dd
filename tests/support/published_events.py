"""Generators of AudioSet and of sets with labeled events in small."""

from pathlib import Path

from support.published import Expected, sounds, text

_MIDS = [("/m/09x0r", "Speech"), ("/t/dd00088", "Male speech, man speaking"), ("/m/07rgkc5", "Static")]
_BAD_TAG = "tag without a place in the vocabulary"


def make_audioset(root: Path) -> Expected:
    head = "# Segments csv created Mon Jan 1 2024\n# num_ytids=1, num_segs=1, num_unique_labels=2\n"
    head += "# YTID, start_seconds, end_seconds, positive_labels\n"
    rows = {
        "balanced_train": '-aBcDeFgHi1, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n',
        "unbalanced_train": '#aBcDeFgHi1, 30.000, 40.000, "/m/09x0r"\na_b-cDeFgH1, 0.000, 10.000, "/m/07rgkc5,/m/x"\n',
        "eval": 'zZ_1234567x, 110.000, 120.000, "/m/09x0r"\nlost_lost_1, 0.000, 10.000, "/m/09x0r"\n',
    }
    for name, lines in rows.items():
        text(root, f"metadata/{name}_segments.csv", head + lines)
    labels = "".join(f'{index},{mid},"{name}"\n' for index, (mid, name) in enumerate(_MIDS))
    text(root, "metadata/class_labels_indices.csv", "index,mid,display_name\n" + labels)
    files = [
        "audios/balanced/Y-aBcDeFgHi1.wav",
        "audios/unbalanced/a_b-cDeFgH1_0_10000.flac",
        "audios/eval/YzZ_1234567x.wav",
    ]
    sounds(root, *files)
    captions = [["Speech, Male speech, man speaking"], ["Static"], ["Speech"]]
    train = dict(zip(files[:2], captions[:2], strict=True))
    return Expected(
        {"train": train, "balanced": {files[0]: captions[0]}, "test": {files[2]: captions[2]}},
        tags={files[0]: ["Speech", "Male speech, man speaking"], files[1]: ["Static"], files[2]: ["Speech"]},
        vocabularies={"audioset": [name for _, name in _MIDS]},
        left_out={"no audio file": ["lost_lost_1 at 0 s"], _BAD_TAG: ["/m/x"]},
    )


def make_audioset_strong(root: Path) -> Expected:
    head = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
    text(
        root,
        "audioset_train_strong.tsv",
        head
        + "a_b-cDeFgH1_30000\t0.127\t0.187\t/m/07rgkc5\nzZ_1234567x_0\t0.0\t0.1\t/t/dd00088\n"
        + "zZ_1234567x_0\t0.1\t0.2\t/m/x\n"
        + "a_b-cDeFgH1_30000\t0.100\t0.200\t/m/09x0r\n",
    )
    text(root, "audioset_eval_strong.tsv", head + "-aBcDeFgHi1_30000\t0.1\t0.2\t/m/09x0r\n")
    text(root, "mid_to_display_name.tsv", "".join(f"{mid}\t{name}\n" for mid, name in _MIDS))
    files = ["wav/Ya_b-cDeFgH1.wav", "wav/zZ_1234567x_0_10000.wav", "wav/Y-aBcDeFgHi1.wav"]
    sounds(root, *files)
    return Expected(
        {
            "train": {files[0]: ["Speech, Static"], files[1]: ["Male speech, man speaking"]},
            "test": {files[2]: ["Speech"]},
        },
        tags={files[0]: ["Speech", "Static"], files[1]: ["Male speech, man speaking"], files[2]: ["Speech"]},
        vocabularies={"audioset_strong": [name for _, name in _MIDS]},
        events=[
            (files[0], "Speech", "Speech", 0.1, 0.2),
            (files[0], "Static", "Static", 0.127, 0.187),
            (files[1], "Male speech, man speaking", "Male speech, man speaking", 0.0, 0.1),
            (files[2], "Speech", "Speech", 0.1, 0.2),
        ],
        left_out={_BAD_TAG: ["/m/x"]},
    )


def make_desed(root: Path) -> Expected:
    strong = "filename\tonset\toffset\tevent_label\n"
    weak = "YaB-cDeFgHi1_30.000_40.000.wav"
    validated, silent = "Yab-CdEfGh12_30.000_40.000.wav", "YzZ_1234567x_0.000_10.000.wav"
    text(root, "metadata/train/weak.tsv", f"filename\tevent_labels\n{weak}\tSpeech,Running_water\n")
    text(root, "metadata/train/unlabel_in_domain.tsv", "filename\nYunlabeled1_0.000_10.000.wav\n")
    text(root, "metadata/train/synthetic21_train/soundscapes.tsv", strong + "12.wav\t0.0\t0.1\tDog\n")
    text(root, "metadata/validation/synthetic21_validation/soundscapes.tsv", strong + "12.wav\t0.1\t0.2\tCat\n")
    text(
        root,
        "metadata/validation/validation.tsv",
        strong + f"{validated}\t0.05\t0.2\tRunning_water\n{silent}\t\t\t\n{validated}\t0.0\t0.1\tSpeech\n",
    )
    text(root, "metadata/validation/test_dcase2018.tsv", strong + f"{validated}\t0.0\t0.1\tSpeech\n")
    text(root, "metadata/validation/validation_durations.tsv", f"filename\tduration\n{validated}\t10.0\n")
    text(root, "metadata/eval/public.tsv", strong + "Yeval_file-1_0.000_10.000.wav\t0.0\t0.2\tDog\n")
    files = {
        "weak": f"audio/train/weak/{weak}",
        "unlabeled": "audio/train/unlabel_in_domain/Yunlabeled1_0.000_10.000.wav",
        "synthetic": "audio/train/synthetic21_train/soundscapes/12.wav",
        "synthetic_val": "audio/validation/synthetic21_validation/soundscapes/12.wav",
        "validated": f"audio/validation/validation/{validated}",
        "silent": f"audio/validation/validation/{silent}",
        "eval": "audio/eval/public/Yeval_file-1_0.000_10.000.wav",
    }
    sounds(root, *files.values())
    return Expected(
        {
            "train": {files["weak"]: ["Speech, Running water"], files["synthetic"]: ["Dog"]},
            "val": {files["synthetic_val"]: ["Cat"], files["validated"]: ["Speech, Running water"]},
            "test": {files["eval"]: ["Dog"]},
        },
        tags={
            files["weak"]: ["Speech", "Running_water"],
            files["synthetic"]: ["Dog"],
            files["synthetic_val"]: ["Cat"],
            files["validated"]: ["Running_water", "Speech"],
            files["silent"]: [],
            files["eval"]: ["Dog"],
        },
        vocabularies={"desed": ["Cat", "Dog", "Running_water", "Speech"]},
        events=[
            (files["synthetic"], "Dog", "Dog", 0.0, 0.1),
            (files["synthetic_val"], "Cat", "Cat", 0.1, 0.2),
            (files["validated"], "Speech", "Speech", 0.0, 0.1),
            (files["validated"], "Running_water", "Running water", 0.05, 0.2),
            (files["eval"], "Dog", "Dog", 0.0, 0.2),
        ],
        left_out={"no caption": ["Yunlabeled1_0.000_10.000.wav", silent]},
    )
