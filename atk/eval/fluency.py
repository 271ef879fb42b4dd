"""FENSE (Zhou et al. 2022): similarity of sentences, with a penalty for captions that are not fluent.

The models are those of the published code, and nothing is downloaded.
"""

import os
import pickle
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atk.eval.java import UnavailableError
from atk.extras import install_command
from atk.models.tokenizer import import_transformers

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerBase

_DETECTOR = "echecker_clotho_audiocaps_base.ckpt"
_URL = f"https://github.com/blmoistawinde/fense/releases/download/V0.1/{_DETECTOR}"
_SENTENCES = "sentence-transformers/paraphrase-TinyBERT-L6-v2"
_THRESHOLD = 0.9  # probability from which a caption counts as not fluent
_PENALTY = 0.9  # part of its score that such a caption loses
_MAX_TOKENS = 64
_BATCH = 32

_Detector = Callable[[list[str]], Tensor]  # captions to probabilities of an error


def fense(candidates: Sequence[str], references: Sequence[Sequence[str]], fluency: Sequence[float]) -> list[float]:
    """FENSE of each caption: the mean cosine of its sentence vector with those of the references, times its fluency.

    Args:
        candidates: one caption per clip.
        references: one or more reference captions per clip.
        fluency: output of `fluency_factors` for the captions.

    Raises:
        UnavailableError: sentence-transformers or its model is missing.
    """
    encode: Any = _sentence_model().encode
    texts = [*candidates, *(text for group in references for text in group)]
    options = {"convert_to_tensor": True, "normalize_embeddings": True, "show_progress_bar": False}
    vectors: Tensor = encode(texts, batch_size=_BATCH, **options)
    groups = vectors[len(candidates) :].split([len(group) for group in references])
    cosines = [float((group @ vector).mean()) for vector, group in zip(vectors, groups, strict=False)]
    return [cosine * factor for cosine, factor in zip(cosines, fluency, strict=True)]


def fluency_factors(captions: Sequence[str]) -> list[float]:
    """What the scores of captions are multiplied by: 1, or 0.1 for a caption with an error of fluency.

    Raises:
        UnavailableError: the published detector of errors or its tokenizer is missing.
    """
    texts = [re.sub(r"[^\w\s]", "", text).lower() for text in captions]
    detect = _detector()
    parts = [detect(texts[first : first + _BATCH]) for first in range(0, len(texts), _BATCH)]
    return [1 - _PENALTY * float(probability > _THRESHOLD) for probability in torch.cat(parts).tolist()]


def _folder() -> Path:
    """The folder in which the published code keeps its models."""
    return Path(os.environ.get("FENSE_DATA", Path(torch.hub.get_dir()) / "fense_data"))


def _source(name: str) -> str:
    """A folder of this name among the models of FENSE, or else the name itself, for the cache of the hub."""
    local = _folder() / name.rpartition("/")[2]
    return str(local) if local.is_dir() else name


@lru_cache(maxsize=1)
def _sentence_model() -> "SentenceTransformer":
    import_transformers()  # with its shim, before sentence-transformers imports it
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        command = install_command("sentence-transformers")
        raise UnavailableError(f"sentence-transformers is not installed; {command}") from None
    return _loaded(_SENTENCES, lambda source: SentenceTransformer(source, local_files_only=True))


@lru_cache(maxsize=1)
def _detector() -> _Detector:
    path = _folder() / _DETECTOR
    if not path.is_file():
        raise UnavailableError(f"{path} is missing; download {_URL}")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        name, classes, weights = saved["model_type"], saved["num_classes"], dict(saved["state_dict"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise UnavailableError(f"{path} is damaged; download {_URL}") from error
    transformers: Any = import_transformers()
    options = {"local_files_only": True}
    tokenizer: PreTrainedTokenizerBase = _loaded(
        name, lambda source: transformers.AutoTokenizer.from_pretrained(source, **options)
    )
    config: Any = _loaded(name, lambda source: transformers.AutoConfig.from_pretrained(source, **options))
    model = nn.ModuleDict(
        {"encoder": transformers.AutoModel.from_config(config), "clf": nn.Linear(config.hidden_size, classes)}
    )
    weights.pop("encoder.embeddings.position_ids", None)  # newer versions of transformers compute them
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UnavailableError(f"{path} does not hold a detector of this kind; download {_URL}") from error
    model.eval()

    @torch.no_grad()
    def detect(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
        logits = model["clf"](model["encoder"](**tokens).last_hidden_state[:, 0])
        return logits[:, -1].sigmoid()  # the last class is any error

    return detect


def _loaded(name: str, load: Callable[[str], Any]) -> Any:
    """What `load` returns for a model of this name, from the folder of FENSE or the cache of the hub."""
    try:
        return load(_source(name))
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"{name} is neither in {_folder()} nor in the cache of the Hugging Face hub; hf download {name}"
        ) from error
