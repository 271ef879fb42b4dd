"""Generators of caption sets in small."""

import json
from pathlib import Path

from support.published import Expected, sounds, text


def make_clotho(root: Path) -> Expected:
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    tables, audio = "clotho_csv_files", "clotho_audio_files"
    text(
        root,
        f"{tables}/clotho_captions_development.csv",
        header
        + ' Lake Boat.wav,A boat idles,A motor hums,Water laps,"Slow, near",It creaks\n'
        + '"Gate, old &amp; red .wav",It squeaks,It creaks,It turns,It opens,It grinds\n'
        + "stripped .wav,One,Two,Three,Four,Five\n"
        + "lost #1.wav,One,Two,Three,Four,Five\n",
    )
    text(root, f"{tables}/clotho_captions_validation.csv", header + "same.wav,A,B,C,D,E\n")
    text(root, f"{tables}/clotho_captions_evaluation.csv", header + "same.wav,F,G,H,I,J\n12:30.wav,K,L,M,N,O\n")
    text(
        root,
        f"{tables}/clotho_metadata_development.csv",
        "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
        ' Lake Boat.wav,boat;water,1001,https://x/1,"[0, 900000]",zoë,http://x/by\n'
        "stripped .wav,gate,Not found,Not found,,nn,http://x/cc0\n",
        "iso-8859-1",
    )
    for split in ("validation", "evaluation"):
        text(root, f"{tables}/clotho_metadata_{split}.csv", "file_name,keywords,sound_id\nsame.wav,x,7\n")
    names = {
        "train": [" Lake Boat.wav", "Gate, old &amp; red .wav", "stripped.wav"],
        "val": ["same.wav"],
        "test": ["same.wav", "12_30.wav"],
    }
    folders = {"train": "development", "val": "validation", "test": "evaluation"}
    files = {split: [f"{audio}/{folders[split]}/{name}" for name in listed] for split, listed in names.items()}
    sounds(root, *(name for listed in files.values() for name in listed))
    captions = {
        "train": [
            ["A boat idles", "A motor hums", "Water laps", "Slow, near", "It creaks"],
            ["It squeaks", "It creaks", "It turns", "It opens", "It grinds"],
            ["One", "Two", "Three", "Four", "Five"],
        ],
        "val": [list("ABCDE")],
        "test": [list("FGHIJ"), list("KLMNO")],
    }
    return Expected(
        {split: dict(zip(files[split], captions[split], strict=True)) for split in files},
        left_out={"no audio file": ["lost #1.wav"]},
    )


AUDIOCAPS_NAMES = {  # of the clips of a split, by who downloaded them
    "aac-datasets": lambda split, video, start, row: f"AUDIOCAPS/audio_32000Hz/{split}/{video}_{start}.flac",
    "wavcaps": lambda split, video, start, row: f"waveforms/{split}/Y{video}.wav",
    "laion": lambda split, video, start, row: f"{video}.wav",
    "audiocaps-download": lambda split, video, start, row: f"{split}/{row}.wav",
    "audiocaps-dl": lambda split, video, start, row: f"audio/{video}_{start * 1000}_{(start + 10) * 1000}.wav",
}
_AUDIOCAPS_CLIPS = {
    "train": [("-aB3_dEfGh1", 30, ["a dog barks twice"]), ("Zz9-kLmNoP2", 0, ["rain falls, then thunder"])],
    "val": [("Yab_cDeFg-3", 5, ["a bell", "a bell rings"])],
    "test": [("0-_lMnOpQr4", 200, ["a car", "a car passes"]), ("sT5uVwXyZ_6", 12, ["wind", "wind blows"])],
}


def make_audiocaps(root: Path, naming: str = "aac-datasets") -> Expected:
    captions: dict[str, dict[str, list[str]]] = {}
    row = 500
    for split, clips in _AUDIOCAPS_CLIPS.items():
        rows = []
        for turn in range(len(clips[0][2])):  # the captions of a clip are not next to each other
            for video, start, texts in clips:
                row += 1
                rows.append((row, video, start, texts[turn]))
                if turn == 0:
                    captions.setdefault(split, {})[AUDIOCAPS_NAMES[naming](split, video, start, row)] = texts
                elif naming == "audiocaps-download":  # which has a copy of the clip for each caption
                    sounds(root, f"{split}/{row}.wav")
        lost = [(9, "lost_lost_1", 0, "nothing")] if split == "train" else []
        lines = [f'{row},{video},{start},"{caption}"' for row, video, start, caption in [*rows, *lost]]
        text(root, f"dataset/{split}.csv", "\r\n".join(["audiocap_id,youtube_id,start_time,caption", *lines, ""]))
    sounds(root, *(name for files in captions.values() for name in files))
    return Expected(captions, left_out={"no audio file": ["lost_lost_1 at 0 s"]})


def make_audiocaps_of_wavcaps(root: Path) -> Expected:
    """The tables of WavCaps, which name the files."""
    text(root, "csv_files/train.csv", "file_name,caption\nYab_cDeFg-3.wav,a dog\nY-aB3_dEfGh1.wav,rain\n")
    text(root, "csv_files/test.csv", 'file_name,caption_1,caption_2\nYZz9-kLmNoP2.wav,a car,"a car, near"\n')
    sounds(root, "train/Yab_cDeFg-3.wav", "train/Y-aB3_dEfGh1.wav", "test/Zz9-kLmNoP2.flac")
    return Expected(
        {
            "train": {"train/Yab_cDeFg-3.wav": ["a dog"], "train/Y-aB3_dEfGh1.wav": ["rain"]},
            "test": {"test/Zz9-kLmNoP2.flac": ["a car", "a car, near"]},
        }
    )


def make_audiocaps_with_texts(root: Path) -> Expected:
    """No tables, but a text file beside each audio file, as LAION has them."""
    captions = {"train": {"train/a.wav": ["a dog"], "train/b.wav": ["rain"]}, "val": {"valid/c.wav": ["a car"]}}
    for files in captions.values():
        for name, texts in files.items():
            sounds(root, name)
            text(root, str(Path(name).with_suffix(".txt")), texts[0] + "\n")
    text(root, "README.txt", "not a caption")
    return Expected(captions)


def make_wavcaps(root: Path) -> Expected:
    tables = {
        "AudioSet_SL/as_final": [("Yab-CdEfGh12.wav", "Birds sing."), ("Y1234567_ab0.wav", "A bell.")],
        "BBC_Sound_Effects/bbc_final": [("NHU05104007", "Wind.")],
        "FreeSound/fsd_final": [("123", "A door."), ("124", "Not downloaded.")],
        "SoundBible/sb_final": [("123", "A cat."), ("124", "A cow.")],
    }
    for name, rows in tables.items():
        items = [{"id": key, "caption": words, "audio": "wav_path", "duration": 9.5} for key, words in rows]
        text(root, f"json_files/{name}.json", json.dumps({"num_captions_per_audio": 1, "data": items}))
    text(root, "json_files/FreeSound/fsd_final_2s.json", json.dumps({"data": []}))
    text(
        root,
        "json_files/blacklist/blacklist_exclude_test_ac.json",
        json.dumps({"AudioSet": ["Yab-CdEfGh12.wav"], "FreeSound": ["124"]}),
    )
    folder = "Zip_files/mnt/fast/waveforms"
    files = {
        f"{folder}/AudioSet_SL_flac/Yab-CdEfGh12.flac": ["Birds sing."],
        f"{folder}/AudioSet_SL_flac/Y1234567_ab0.flac": ["A bell."],
        f"{folder}/BBC_Sound_Effects_flac/NHU05104007.flac": ["Wind."],
        f"{folder}/FreeSound_flac/123.flac": ["A door."],
        f"{folder}/SoundBible_flac/123.flac": ["A cat."],
        f"{folder}/SoundBible_flac/124.flac": ["A cow."],
    }
    sounds(root, *files)
    return Expected({"train": files}, left_out={"no audio file": ["FreeSound 124"]})


def make_musiccaps(root: Path) -> Expected:
    text(
        root,
        "musiccaps-public.csv",
        "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,is_balanced_subset,is_audioset_eval\n"
        '0aBcDeFgHiJ,30,40,"/m/04rlf,/m/0a1","[\'piano\', \'slow\']","A slow piano, no voice.",4,False,True\n'
        "-KlMnOpQrSt,0,10,/m/04rlf,['drums'],Fast drums.,1,True,False\n"
        "lMnOpQrSt-_,5,15,/m/04rlf,['flute'],A flute.,1,True,False\n"
        "lost_lost_1,5,15,/m/04rlf,['flute'],A flute.,1,True,False\n",
    )
    files = ["audio/0aBcDeFgHiJ.wav", "audio/-KlMnOpQrSt.wav", "audio/[lMnOpQrSt-_]-[5-15].wav"]
    sounds(root, *files)
    return Expected(
        {
            "train": {files[1]: ["Fast drums."], files[2]: ["A flute."]},
            "test": {files[0]: ["A slow piano, no voice."]},
        },
        left_out={"no audio file": ["lost_lost_1 at 5 s"]},
    )


def make_songdescriber(root: Path) -> Expected:
    text(
        root,
        "song_describer.csv",
        "caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration\n"
        "7,226,A calm tune,True,0,a_1,b_1,26/226.mp3,201.4\n"
        "9,1301,Loud drums,True,0,a_1,b_1,01/1301.mp3,201.4\n"
        '8,226,"Soft, sad",False,1,a_1,b_1,26/226.mp3,201.4\n',
    )
    files = {"audio/26/226.2min.mp3": ["A calm tune", "Soft, sad"], "audio/01/1301.2min.mp3": ["Loud drums"]}
    sounds(root, *files)
    return Expected({"test": files})


def make_tacos(root: Path) -> Expected:
    text(
        root,
        "annotations_strong.csv",
        "filename,text,onset,offset\n1001.mp3,someone walks away,0.13,0.19\n1001.mp3,a door slams,0.05,0.125\n"
        "1002.mp3,a dog,0.0,0.1\n1003.mp3,rain,0.1,0.1\n",
    )
    text(root, "annotations_weak.csv", 'filename,text\n1001.mp3,"a door, then steps"\n1003.mp3,rain falls\n')
    text(root, "development_split.csv", "filename\n1001.mp3\n1002.mp3\n1004.mp3\n")
    text(root, "test_split.csv", "filename\n1003.mp3\n")
    text(root, "metadata.csv", "filename,keywords,freesound_id\n1001.mp3,door,1001\n")
    sounds(root, *(f"audio/{name}.mp3" for name in (1001, 1002, 1003)))
    return Expected(
        {
            "train": {"audio/1001.mp3": ["a door, then steps"], "audio/1002.mp3": ["a dog"]},
            "test": {"audio/1003.mp3": ["rain falls"]},
        },
        events=[
            ("audio/1001.mp3", "a door slams", "a door slams", 0.05, 0.125),
            ("audio/1001.mp3", "someone walks away", "someone walks away", 0.13, 0.19),
            ("audio/1002.mp3", "a dog", "a dog", 0.0, 0.1),
        ],
        left_out={
            "no audio file": ["1004.mp3"],
            "event that does not end after it starts, at 0 s or later": ["1003.mp3: rain (0.1 s to 0.1 s)"],
        },
    )


_CASTELLA = {
    "train": [
        ("ab-CdEfGh12", "A yard", 2, [("A saw runs", [[40, 55], [4, 9]]), ("A bird", [[9, 9]])]),
        ("zZ_1234567x", "R", 2, [("Hiss", [[7, 90]])]),
    ],
    "test": [("-Z_1234567y", "A road", 1, [("A car", [[0, 1]])])],
}


def make_castella(root: Path, language: str = "en") -> Expected:
    """Wrong `num_moments`, unsorted timestamps, an end after the end of the clip, and an empty moment."""
    for split, clips in _CASTELLA.items():
        items = [
            {
                "yid": video,
                "global_caption": caption,
                "duration": 60,
                "num_moments": count,
                "moments": [{"local_caption": words, "timestamps": windows} for words, windows in moments],
            }
            for video, caption, count, moments in clips
        ]
        for folder in ("en", "ja"):
            written = json.dumps(items) if folder == language else "[]"
            text(root, f"json/{folder}/{split}.json", written)
    sounds(root, "audio/ab-CdEfGh12.wav", "audio/zZ_1234567x.wav", "audio/-Z_1234567y.wav")
    return Expected(
        {
            "train": {"audio/ab-CdEfGh12.wav": ["A yard"], "audio/zZ_1234567x.wav": ["R"]},
            "test": {"audio/-Z_1234567y.wav": ["A road"]},
        },
        events=[
            ("audio/ab-CdEfGh12.wav", "ab-CdEfGh12_1", "A saw runs", 4.0, 9.0),
            ("audio/ab-CdEfGh12.wav", "ab-CdEfGh12_1", "A saw runs", 40.0, 55.0),
            ("audio/zZ_1234567x.wav", "zZ_1234567x_1", "Hiss", 7.0, 90.0),
            ("audio/-Z_1234567y.wav", "-Z_1234567y_1", "A car", 0.0, 1.0),
        ],
        left_out={
            "event that does not end after it starts, at 0 s or later": ["ab-CdEfGh12: A bird (9 s to 9 s)"],
        },
    )


def make_castella_of_lighthouse(root: Path) -> Expected:
    lines = [
        {"qid": "ab-CdEfGh12_1", "query": "A saw runs", "duration": 120, "vid": "ab-CdEfGh12"},
        {"qid": "ab-CdEfGh12_2", "query": "Hiss", "duration": 120, "vid": "ab-CdEfGh12"},
    ]
    lines[0]["relevant_windows"] = [[4, 9], [40, 55]]  # the lists of DCASE have none
    text(root, "castella_test_release.jsonl", "\n".join(map(json.dumps, lines)) + "\n")
    sounds(root, "ab-CdEfGh12.wav")
    return Expected(
        {"test": {"ab-CdEfGh12.wav": ["A saw runs", "Hiss"]}},
        events=[
            ("ab-CdEfGh12.wav", "ab-CdEfGh12_1", "A saw runs", 4.0, 9.0),
            ("ab-CdEfGh12.wav", "ab-CdEfGh12_1", "A saw runs", 40.0, 55.0),
        ],
    )
