"""Generators of sets of labeled recordings in small."""

import json
import pickle
from pathlib import Path

import numpy as np
from support.published import Expected, sounds, text


def _folds(files: dict[str, tuple[str, str]], last: int) -> Expected:
    """What a set of `last` folds must give, from the fold and label of each file; the last label is of class 0."""
    roles = {str(last): "test", str(last - 1): "val"}
    captions: dict[str, dict[str, list[str]]] = {"train": {}, "val": {}, "test": {}, "all": {}}
    for name, (fold, label) in files.items():
        for split in (roles.get(fold, "train"), "all"):
            captions[split][name] = [label.replace("_", " ")]
    return Expected(
        captions,
        tags={name: [label] for name, (_, label) in files.items()},
        folds={name: fold for name, (fold, _) in files.items()},
    )


def make_esc50(root: Path) -> Expected:
    rows = [
        ("1-1001-A-0.wav", 1, 0, "dog"),
        ("5-1002-B-14.wav", 5, 14, "chirping_birds"),
        ("4-1003-A-0.wav", 4, 0, "dog"),
        ("2-1004-A-9.wav", 2, 9, "crow"),
        ("3-1005-A-9.wav", 3, 9, "crow"),
    ]
    lines = "".join(f"{name},{fold},{target},{label},True,1,A\n" for name, fold, target, label in rows)
    text(root, "meta/esc50.csv", "filename,fold,target,category,esc10,src_file,take\n" + lines)
    sounds(root, *(f"audio/{name}" for name, *_ in rows[:4]))
    expected = _folds({f"audio/{name}": (str(fold), label) for name, fold, _, label in rows[:4]}, 5)
    expected.vocabularies = {"esc50": ["dog", "crow", "chirping_birds"]}
    expected.left_out = {"no audio file": ["3-1005-A-9.wav"]}
    return expected


def make_urbansound8k(root: Path) -> Expected:
    rows = [(f"100{fold}-{fold}-0-0.wav", fold, 10 - fold, f"class_{10 - fold}") for fold in range(1, 11)]
    lines = "".join(f"{name},1001,0.0,0.31,1,{fold},{target},{label}\n" for name, fold, target, label in rows)
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
    text(root, "UrbanSound8K/metadata/UrbanSound8K.csv", header + lines)
    files = {f"UrbanSound8K/audio/fold{fold}/{name}": (str(fold), label) for name, fold, _, label in rows}
    sounds(root, *files)
    expected = _folds(files, 10)
    expected.vocabularies = {"urbansound8k": [f"class_{target}" for target in range(10)]}
    return expected


def make_fsd50k(root: Path) -> Expected:
    folder = "FSD50K.ground_truth"
    text(
        root,
        f"{folder}/dev.csv",
        'fname,labels,mids,split\n1001,"Bark,Dog","/m/0a1,/m/0a2",train\n1002,Rain,/m/0a3,val\n'
        "1003,Chink_and_clink,/m/0a4,train\n",
    )
    text(root, f"{folder}/eval.csv", 'fname,labels,mids\n2001,"Crack_(glass),Rain","/m/0a5,/m/0a3"\n2002,Dog,/m/0a2\n')
    names = ["Bark", "Chink_and_clink", "Crack_(glass)", "Dog", "Rain"]
    text(root, f"{folder}/vocabulary.csv", "".join(f"{i},{name},/m/0a{i}\n" for i, name in enumerate(names)))
    dev, test = "FSD50K.dev_audio", "FSD50K.eval_audio"
    sounds(root, *(f"{dev}/{name}.wav" for name in (1001, 1002, 1003)), f"{test}/2001.wav")
    return Expected(
        {
            "train": {f"{dev}/1001.wav": ["Bark, Dog"], f"{dev}/1003.wav": ["Chink and clink"]},
            "val": {f"{dev}/1002.wav": ["Rain"]},
            "test": {f"{test}/2001.wav": ["Crack (glass), Rain"]},
        },
        tags={
            f"{dev}/1001.wav": ["Bark", "Dog"],
            f"{dev}/1003.wav": ["Chink_and_clink"],
            f"{dev}/1002.wav": ["Rain"],
            f"{test}/2001.wav": ["Crack_(glass)", "Rain"],
        },
        vocabularies={"fsd50k": names},
        left_out={"no audio file": ["2002"]},
    )


def make_fsdnoisy18k(root: Path) -> Expected:
    header = "fname,label,aso_id,manually_verified,noisy_small\n"
    text(
        root,
        "FSDnoisy18k.meta/train.csv",
        header + "1.wav,Acoustic_guitar,/m/1,0,1\n2.wav,Rain,/m/2,1,0\n",
    )
    text(root, "FSDnoisy18k.meta/test.csv", "fname,label,aso_id\n3.wav,Rain,/m/2\n")
    train, test = "FSDnoisy18k.audio_train", "FSDnoisy18k.audio_test"
    files = {f"{train}/1.wav": "Acoustic_guitar", f"{train}/2.wav": "Rain", f"{test}/3.wav": "Rain"}
    sounds(root, *files)
    return Expected(
        {
            "train": {f"{train}/1.wav": ["Acoustic guitar"], f"{train}/2.wav": ["Rain"]},
            "test": {f"{test}/3.wav": ["Rain"]},
        },
        tags={name: [label] for name, label in files.items()},
        vocabularies={"fsdnoisy18k": ["Acoustic_guitar", "Rain"]},
    )


def make_gtzan(root: Path) -> Expected:
    lists = {
        "train": ["blues/blues.00012.wav", "rock/rock.00003.wav"],
        "valid": ["pop/pop.00044.wav"],
        "test": ["rock/rock.00001.wav", "pop/pop.00001.wav"],
    }
    for name, files in lists.items():
        text(root, f"{name}_filtered.txt", "\n".join(files) + "\n")
    files = [*lists["train"], *lists["valid"], lists["test"][0], "blues/blues.00099.au"]
    sounds(root, *(f"genres/{name}" for name in files))
    genre = {f"genres/{name}": name.partition("/")[0] for name in files}
    expected = Expected(
        {"all": {name: [label] for name, label in genre.items()}},
        tags={name: [label] for name, label in genre.items()},
        vocabularies={"gtzan": ["blues", "pop", "rock"]},
        left_out={"no audio file": ["pop.00001"]},
    )
    for split, part in (("train", files[:2]), ("val", files[2:3]), ("test", files[3:4])):
        expected.captions[split] = {f"genres/{name}": [name.partition("/")[0]] for name in part}
    return expected


def make_vggsound(root: Path) -> Expected:
    text(
        root,
        "vggsound.csv",
        '-aBcDeFgHi1,30,people talking,train\na_b-cDeFgH1,4,"engine, idle",test\nzZ_1234567x,110,dog barking,train\n'
        "lost_lost_1,0,dog barking,test\nvideo_only1,7,dog barking,test\n",
    )
    text(root, "data/stat.csv", 'dog barking,2,animals\n"engine, idle",1,vehicles\nabsent,1,other\n')
    files = ["wav/-aBcDeFgHi1_000030.wav", "wav/a_b-cDeFgH1_000004.wav", "wav/zZ_1234567x_000110.wav"]
    sounds(root, *files)
    text(root, "video/video_only1_000007.mid", "stands for a format that cannot be read")
    labels = ["people talking", "engine, idle", "dog barking"]
    captions = {name: [label] for name, label in zip(files, labels, strict=True)}
    return Expected(
        {"train": {name: captions[name] for name in (files[0], files[2])}, "test": {files[1]: captions[files[1]]}},
        tags=captions,
        vocabularies={"vggsound": ["dog barking", "engine, idle", "people talking"]},
        left_out={
            "no audio file": ["lost_lost_1 at 0 s"],
            "this format cannot be read; convert it to FLAC, for example": ["video_only1 at 7 s"],
        },
    )


def make_magnatagatune(root: Path) -> Expected:
    text(
        root,
        "annotations_final.csv",
        '"clip_id"\t"guitar"\t"no voice"\t"slow"\t"mp3_path"\n'
        '"2"\t"1"\t"0"\t"0"\t"f/a-1-x-0-29.mp3"\n6\t0\t1\t1\t0/b-2-y-30-59.mp3\n7\t0\t0\t1\t1/b-2-y-0-29.mp3\n'
        "35644\t1\t0\t0\t0/broken.mp3\n8\t0\t0\t0\tc/untagged.mp3\n",
    )
    for name, lines in (("train", ["0\t1/b-2-y-0-29.mp3"]), ("valid", []), ("test", ["0\t0/b-2-y-30-59.mp3"])):
        np.save(root / f"{name}.npy", np.array(lines, dtype="U"))
    for name, file in (("train", "1/b-2-y-0-29.npy"), ("valid", "f/a-1-x-0-29.npy")):  # as Python 2 wrote them
        text(root, f"{name}_list_pub.cP", f"(lp1\nS'{file}'\np2\na.")
    files = ["f/a-1-x-0-29.mp3", "0/b-2-y-30-59.mp3", "1/b-2-y-0-29.mp3", "c/untagged.mp3"]
    sounds(root, *(f"mp3/{name}" for name in [*files, "0/broken.mp3"]))
    first, second, third, untagged = (f"mp3/{name}" for name in files)
    captions = {first: ["guitar"], second: ["no voice, slow"], third: ["slow"]}
    return Expected(
        {
            "train": {second: captions[second], third: captions[third]},
            "test": {first: captions[first]},
            "won_train": {third: captions[third]},
            "won_test": {second: captions[second]},
            "lee_train": {third: captions[third]},
            "lee_val": {first: captions[first]},
        },
        tags={first: ["guitar"], second: ["no voice", "slow"], third: ["slow"], untagged: []},
        vocabularies={
            "magnatagatune": ["guitar", "no voice", "slow"],
            "magnatagatune_top50": ["guitar", "no voice", "slow"],
        },
        folds={first: "f", second: "0", third: "1", untagged: "c"},
        left_out={"known to be damaged": ["0/broken.mp3"], "no caption": ["c/untagged.mp3"]},
    )


def make_ecals(root: Path) -> Expected:
    tracks = {"TRAAAAA1": ["rock", "mellow"], "TRAAAAA2": ["sad song"], "TRAAAAA3": ["rock"], "TRAAAAA4": ["mellow"]}
    annotation = {track: {"tag": tags, "title": "T", "track_id": track} for track, tags in tracks.items()}
    splits = {"train_track": ["TRAAAAA1"], "valid_track": [], "test_track": ["TRAAAAA3", "TRAAAAA4"]}
    splits["extra_track"] = ["TRAAAAA2"]
    folder = "ecals_annotation"
    text(root, f"{folder}/annotation.json", json.dumps(annotation))
    text(root, f"{folder}/ecals_track_split.json", json.dumps(splits))
    text(root, f"{folder}/ecals_tags.json", json.dumps(["mellow", "rock", "sad song"]))
    text(root, f"{folder}/multiquery_samples.json", json.dumps({"TRAAAAA3": ["rock"]}))
    identifiers = {track: str(index) for index, track in enumerate(tracks)}
    paths = {index: f"8/9/{index}.clip.mp3" for index in identifiers.values()}
    (root / "lastfm_annotation").mkdir()
    for name, mapping in (("MSD_id_to_7D_id", identifiers), ("7D_id_to_path", paths)):
        (root / "lastfm_annotation" / f"{name}.pkl").write_bytes(pickle.dumps(mapping))
    files = {track: f"npy/8/9/{identifiers[track]}.clip.npy" for track in list(tracks)[:3]}
    sounds(root, *files.values())
    captions = {files[track]: [", ".join(tracks[track])] for track in files}
    first, second, third = files.values()
    return Expected(
        {
            "train": {first: captions[first], second: captions[second]},
            "test": {third: captions[third]},
            "multiquery": {third: captions[third]},
        },
        tags={name: tracks[track] for track, name in files.items()},
        vocabularies={"ecals": ["mellow", "rock", "sad song"], "msd50": ["rock", "mellow"]},
        left_out={"no audio file": ["TRAAAAA4"]},
    )
