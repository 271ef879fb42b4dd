"""Audio files, caption folders, and batches of them."""

from atk.data.audio import AudioError, AudioInfo, audio_info, find_audio, load_audio
from atk.data.captions import Clip, Split, describe_skipped, read_folder, read_split
from atk.data.dataset import Batch, EvalDataset, TrainDataset, collate
from atk.data.loader import Loader, eval_loader, train_loader
from atk.data.sampler import TrainBatches

__all__ = [
    "AudioError",
    "AudioInfo",
    "Batch",
    "Clip",
    "EvalDataset",
    "Loader",
    "Split",
    "TrainBatches",
    "TrainDataset",
    "audio_info",
    "collate",
    "describe_skipped",
    "eval_loader",
    "find_audio",
    "load_audio",
    "read_folder",
    "read_split",
    "train_loader",
]
