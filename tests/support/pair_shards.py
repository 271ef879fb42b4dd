"""Tar shards with the same clips as a captioned folder."""

import csv
import json

from support.unlabeled_cases import tar


def shards_of(folder, out, count=2):
    """Write the splits of a captioned folder as shards `out/SPLIT/0.tar`, ..., with val in the folder `valid`."""
    for split, name in {"train": "train", "val": "valid", "test": "test"}.items():
        with (folder / f"{split}.csv").open(newline="") as file:
            rows = [(row["file_name"], row["caption"]) for row in csv.DictReader(file)]
        (out / name).mkdir(parents=True)
        size = -(-len(rows) // count)
        for shard, first in enumerate(range(0, len(rows), size)):
            members = []
            for file_name, caption in rows[first : first + size]:
                key = f"data/set/{file_name.rpartition('.')[0]}"
                members.append((f"{key}.json", json.dumps({"text": [caption], "tag": []}).encode()))
                members.append((f"{key}.{file_name.rpartition('.')[2]}", (folder / file_name).read_bytes()))
            tar(out / name / f"{shard}.tar", members)
    return out
