"""Audio files, data folders, and batches of clips."""

from atk.data.audio import AudioError, AudioInfo, DataWarning, audio_info, load_audio, load_crop
from atk.data.captions import Clip, Split, describe_skipped, read_folder, read_split
from atk.data.dataset import Batch, EvalDataset, TrainDataset, collate
from atk.data.listing import find_audio, list_folder
from atk.data.loader import Loader, batches_of, eval_loader, one_pass, train_loader, unlabeled_loader
from atk.data.mixtures import CONDITIONS, MixConfig, MixtureBatch, MixtureDataset
from atk.data.references import ReferencePool, read_references
from atk.data.sampler import SetWeights, TrainBatches, UnlabeledBatches
from atk.data.sets import DataSets, open_data, read_data
from atk.data.unlabeled import UnlabeledAudio, UnlabeledDataset

__all__ = [
    "CONDITIONS",
    "AudioError",
    "AudioInfo",
    "Batch",
    "Clip",
    "DataSets",
    "DataWarning",
    "EvalDataset",
    "Loader",
    "MixConfig",
    "MixtureBatch",
    "MixtureDataset",
    "ReferencePool",
    "SetWeights",
    "Split",
    "TrainBatches",
    "TrainDataset",
    "UnlabeledAudio",
    "UnlabeledBatches",
    "UnlabeledDataset",
    "audio_info",
    "batches_of",
    "collate",
    "describe_skipped",
    "eval_loader",
    "find_audio",
    "list_folder",
    "load_audio",
    "load_crop",
    "one_pass",
    "open_data",
    "read_data",
    "read_folder",
    "read_references",
    "read_split",
    "train_loader",
    "unlabeled_loader",
]
