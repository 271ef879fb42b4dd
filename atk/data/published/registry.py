"""The published data sets that can be imported."""

from collections.abc import Callable
from typing import NamedTuple

from atk.data.published import audiocaps, audioset, clotho, desed, ecals, exclusions, labeled, music, timed, wavcaps
from atk.data.published.clips import Contents, Source


class PublishedSet(NamedTuple):
    """A published data set.

    Attributes:
        read: reads its folder.
        tables: names of its tables, with wildcards.
        audio: names of its audio files.
        protocol: what becomes which split, and which annotations are written.
        url: where it comes from.
        audio_suffixes: suffixes of its audio besides those that are usual.
        exclusion_lists: whether there are exclusion lists for it.
        evaluation: protocols of `atk evaluate` that are published for it.
    """

    read: Callable[[Source], Contents]
    tables: tuple[str, ...]
    audio: str
    protocol: str
    url: str
    audio_suffixes: tuple[str, ...] = ()
    exclusion_lists: bool = False
    evaluation: tuple[str, ...] = ()


SETS = {
    "clotho": PublishedSet(
        clotho.read_clotho,
        (*clotho.TABLES, *exclusions.TABLES),
        "names of the table, below development, validation, and evaluation",
        "development, validation, and evaluation are train, val, and test; five captions per clip",
        "https://zenodo.org/records/4783391",
        exclusion_lists=True,
        evaluation=("retrieval",),
    ),
    "audiocaps": PublishedSet(
        audiocaps.read_audiocaps,
        audiocaps.TABLES,
        "ID_START, ID_STARTms_ENDms, YID, ID, or SPLIT/AUDIOCAP_ID",
        "train, val, and test; five captions per clip of val and test",
        "https://github.com/cdjkim/audiocaps",
        evaluation=("retrieval",),
    ),
    "wavcaps": PublishedSet(
        wavcaps.read_wavcaps,
        (*wavcaps.TABLES, *exclusions.TABLES),
        "SOURCE_flac/ID",
        "train only; leave out test sets with --exclude",
        "https://huggingface.co/datasets/cvssp/WavCaps",
        exclusion_lists=True,
    ),
    "musiccaps": PublishedSet(
        music.read_musiccaps,
        ("musiccaps-public.csv",),
        "ID, ID_START, or [ID]-[START-END]",
        "clips of AudioSet's evaluation split are test, the others train",
        "https://huggingface.co/datasets/google/MusicCaps",
        evaluation=("retrieval",),
    ),
    "songdescriber": PublishedSet(
        music.read_songdescriber,
        ("song_describer.csv",),
        "TRACK.2min",
        "test only; all captions, not only those of the valid subset",
        "https://github.com/mulab-mir/song-describer-dataset",
        evaluation=("retrieval",),
    ),
    "tacos": PublishedSet(
        timed.read_tacos,
        timed.TACOS_TABLES,
        "names of the table",
        "development is train; weak captions are captions, strong captions events",
        "https://zenodo.org/records/15379789",
        evaluation=("retrieval", "moments"),
    ),
    "castella": PublishedSet(
        timed.read_castella,
        timed.CASTELLA_TABLES,
        "ID",
        "train, val, and test; global captions are captions, moments events named ID_N",
        "https://github.com/line/CASTELLA",
        evaluation=("retrieval", "moments"),
    ),
    "audioset": PublishedSet(
        audioset.read_audioset,
        audioset.TABLES,
        "YID or ID_STARTms_ENDms",
        "both training lists are train, the balanced one also balanced; eval is test; 527 tags",
        "https://research.google.com/audioset/download.html",
        evaluation=("zero-shot",),
    ),
    "audioset-strong": PublishedSet(
        audioset.read_audioset_strong,
        audioset.STRONG_TABLES,
        "YID, ID_STARTms, or ID_STARTms_ENDms",
        "train and eval are train and test; events and tags",
        "https://research.google.com/audioset/download_strong.html",
    ),
    "desed": PublishedSet(
        desed.read_desed,
        ("*.tsv",),
        "names of the tables",
        "tables below train, validation, and eval are train, val, and test; events and tags",
        "https://github.com/turpaultn/DESED",
        evaluation=("psds",),
    ),
    "esc50": PublishedSet(
        labeled.read_esc50,
        ("esc50.csv",),
        "names of the table",
        "fold 5 is test, fold 4 val; all.csv and folds.csv for cross-validation; 50 tags",
        "https://github.com/karolpiczak/ESC-50",
        evaluation=("zero-shot",),
    ),
    "urbansound8k": PublishedSet(
        labeled.read_urbansound8k,
        ("UrbanSound8K.csv",),
        "names of the table",
        "fold 10 is test, fold 9 val; all.csv and folds.csv for cross-validation; 10 tags",
        "https://urbansounddataset.weebly.com/urbansound8k.html",
        evaluation=("zero-shot",),
    ),
    "fsd50k": PublishedSet(
        labeled.read_fsd50k,
        ("dev.csv", "eval.csv", "vocabulary.csv"),
        "FNAME",
        "dev is train and val by its column split, eval is test; 200 tags",
        "https://zenodo.org/records/4060432",
        evaluation=("zero-shot",),
    ),
    "fsdnoisy18k": PublishedSet(
        labeled.read_fsdnoisy18k,
        ("train.csv", "test.csv"),
        "FNAME",
        "train, with noisy labels, and test; 20 tags",
        "https://zenodo.org/records/2529934",
        evaluation=("zero-shot",),
    ),
    "gtzan": PublishedSet(
        music.read_gtzan,
        ("*_filtered.txt",),
        "GENRE.NNNNN",
        "fault-filtered train, val, and test; all.csv has every clip; 10 tags",
        "https://github.com/coreyker/dnn-mgr",
        evaluation=("zero-shot",),
    ),
    "vggsound": PublishedSet(
        labeled.read_vggsound,
        ("vggsound.csv", "train.csv", "test.csv", "stat.csv"),
        "ID_START, with six digits",
        "train and test; 309 tags",
        "https://github.com/hche11/VGGSound",
        evaluation=("zero-shot",),
    ),
    "magnatagatune": PublishedSet(
        music.read_magnatagatune,
        music.MTAT_TABLES,
        "names of the table",
        "folders 0-b, c, and d-f are train, val, and test; won_*.csv and lee_*.csv by their lists; 188 and 50 tags",
        "https://mirg.city.ac.uk/codeapps/the-magnatagatune-dataset",
        evaluation=("tagging",),
    ),
    "ecals": PublishedSet(
        ecals.read_ecals,
        ecals.TABLES,
        "NumPy files named by 7D_id_to_path.pkl, float32 at 16 kHz",
        "train and extra are train, valid is val; multiquery.csv; 1,054 and 50 tags",
        "https://github.com/seungheondoh/music-text-representation",
        audio_suffixes=(".npy",),
        evaluation=("tagging", "multi-query"),
    ),
}
