"""Published weights by their published names: read safely, and loaded without leaving one out."""

import contextlib
import re
import zipfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

Layout = Literal["laion", "msclap"]
_NAMES: dict[Layout, str] = {"laion": "LAION-CLAP", "msclap": "MS-CLAP 2023"}
_FIRST: dict[str, Layout] = {"audio_branch.": "laion", "audio_encoder.": "msclap"}  # parts of the names of weights
_TRAINING_STATE = ("state_dict", "model")  # keys of the weights in a checkpoint that also holds an optimizer
_COMPUTED = re.compile(r"(.*\.)?(position_ids|token_type_ids|relative_position_index)$")  # by the model itself
_PARTS = {"query": 0, "key": 1, "value": 2}  # of a fused projection
_HTSAT_NAMES = (  # (name in transformers, published name), replaced in this order
    ("batch_norm.", "bn0."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".attention.output.dense.", ".attn.proj."),
    (".attention.self.", ".attn."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)
# The classifier, and what the model computes itself: STFT, mel filters, and attention masks.
HTSAT_UNUSED = r"(tscam_conv|head|spectrogram_extractor|logmel_extractor)\..*|.*\.attn_mask"


class PublishedWeights:
    """The weights of a file by their published names, which remembers the names that were used.

    Args:
        path: the file.
        layout: the model whose weights it should hold.

    Raises:
        ValueError: the file cannot be read as weights.
    """

    def __init__(self, path: str | Path, layout: Layout):
        self.path = path
        self.model_name = _NAMES[layout]
        self._state = _read(path)
        self._used: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._state:
            self.refuse(f"it lacks {name}")
        self._used.add(name)
        value = self._state[name]
        return value.float() if value.is_floating_point() else value

    def refuse(self, reason: str) -> NoReturn:
        """Raise ValueError with the name of the file."""
        raise ValueError(f"{self.path} is not {self.model_name}: {reason}")

    def names(self, prefix: str) -> list[str]:
        """The names that start with `prefix`, without it."""
        return [name[len(prefix) :] for name in self._state if name.startswith(prefix)]

    def load(self, module: nn.Module, prefix: str, published: Callable[[str], str] = str) -> None:
        """Load `module` from the weights that start with `prefix`.

        Args:
            module: receives the weights.
            prefix: of the published names.
            published: published name of a weight, without the prefix, from its name in `module`. Names that
                `queries_keys_values` maps to one name are parts of it.

        Raises:
            ValueError: a weight is missing or has another shape; the message names it.
        """
        wanted = {name: value for name, value in module.state_dict().items() if not _COMPUTED.match(name)}
        sources = {name: prefix + published(name) for name in wanted}
        if missing := [source for source in dict.fromkeys(sources.values()) if source not in self._state]:
            self.refuse(f"it lacks {_listed(missing)}")
        loaded = {}
        for name, value in wanted.items():
            part = _part_of_fused(name, sources[name])
            loaded[name] = self[sources[name]] if part is None else self[sources[name]].chunk(3)[part]
            if loaded[name].shape != value.shape:
                shapes = f"{list(self[sources[name]].shape)} does not fit the {list(value.shape)}"
                self.refuse(f"the shape of {sources[name]}, {shapes} of {name} in the model")
        module.load_state_dict(loaded, strict=False)

    def finish(self, unused: str) -> None:
        """Check that every weight was used, but for those whose whole name matches the regular expression `unused`.

        Raises:
            ValueError: there are others; the message names them.
        """
        pattern = re.compile(unused)
        left = [name for name in self._state if name not in self._used]
        left = [name for name in left if not pattern.fullmatch(name) and not _COMPUTED.match(name)]
        if left:
            self.refuse(f"it has weights that this model lacks: {_listed(left)}")


def layout_of(path: str | Path) -> Layout:
    """Which published model a file of weights holds.

    Raises:
        ValueError: the file cannot be read as weights, or holds those of another model.
    """
    names = _read(path)
    for prefix, layout in _FIRST.items():
        if any(name.startswith(prefix) for name in names):
            return layout
    first = next(iter(names), "nothing")
    raise ValueError(f"{path} holds neither LAION-CLAP nor MS-CLAP 2023: its first weight is {first}")


def htsat_name(name: str) -> str:
    """The published name of a weight of HTS-AT, from its name in `transformers.ClapAudioModel`."""
    for new, old in _HTSAT_NAMES:
        name = name.replace(new, old)
    return re.sub(r"\.attn\.(query|key|value)\.", ".attn.qkv.", name)


def htsat_settings(weights: PublishedWeights, prefix: str) -> dict[str, Any]:
    """The arguments of `transformers.ClapAudioConfig` that match the shapes of HTS-AT's weights."""
    patches = weights[f"{prefix}patch_embed.proj.weight"]  # [width, 1, patch, patch]
    names = weights.names(prefix)
    blocks = {name for name in names if name.endswith("attn.relative_position_bias_table")}
    stages = 1 + max((int(name.split(".")[1]) for name in blocks), default=0)
    depths = [sum(name.startswith(f"layers.{stage}.") for name in blocks) for stage in range(stages)]
    table = "blocks.0.attn.relative_position_bias_table"
    tables = [weights[f"{prefix}layers.{stage}.{table}"] for stage in range(stages)]
    fusion = any(name.startswith("patch_embed.fusion_model.") for name in names)
    return {
        "num_mel_bins": len(weights[f"{prefix}bn0.weight"]),
        "patch_size": patches.shape[2],
        "patch_stride": [patches.shape[2], patches.shape[3]],
        "patch_embeds_hidden_size": patches.shape[0],
        "hidden_size": patches.shape[0] * 2 ** (stages - 1),
        "depths": depths,
        "num_attention_heads": [values.shape[1] for values in tables],
        "num_hidden_layers": stages,
        "window_size": (int(len(tables[0]) ** 0.5) + 1) // 2,  # a table has (2 window_size - 1)^2 rows
        "hidden_dropout_prob": 0.0,
        "drop_path_rate": 0.1,
        "enable_fusion": fusion,
        "fusion_type": "aff_2d" if fusion else None,
    }


def mel_filters(weights: PublishedWeights, prefix: str) -> Tensor:
    """The mel filters `[fft_size // 2 + 1, mel_bins]` of HTS-AT, after a check that its STFT has a Hann window."""
    filters = weights[f"{prefix}logmel_extractor.melW"]
    stft = f"{prefix}spectrogram_extractor.stft.conv_real.weight"
    window = weights[stft][0, 0]  # the row of frequency 0 is the window itself
    size = len(window)
    if filters.shape[0] != size // 2 + 1 or not torch.allclose(window, torch.hann_window(size), atol=1e-3):
        weights.refuse(f"{stft} is not an STFT with a Hann window of {2 * len(filters) - 2} samples")
    return filters.clone()  # not a view of the file


def _part_of_fused(name: str, source: str) -> int | None:
    """Which third of the published weight `source` a weight of a model is; None if it is all of it."""
    return _PARTS[name.split(".")[-2]] if ".qkv." in source else None


def _listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _read(path: str | Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by name, without the prefix of data-parallel training; mapped if they can be.

    Raises:
        ValueError: the file is missing, damaged, or not a checkpoint of weights.
    """
    try:
        with _scalars_of_numpy():
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of many types, depending on what is damaged
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        if not isinstance(error, OSError):
            reason = f"damaged, or not a file that torch.save wrote ({reason})"
        raise ValueError(f"cannot read the weights in {path}: {reason}") from error
    for key in _TRAINING_STATE:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise ValueError(f"cannot read the weights in {path}: it holds no tensors by name")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


@contextlib.contextmanager
def _scalars_of_numpy() -> Generator[None, None, None]:
    """Let checkpoints hold numpy scalars, as metrics beside the weights; they run no code."""
    scalar = np.float64(0).__reduce__()[0]  # creates scalars when they are loaded
    types: list[Any] = [np.dtype, *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool"))]
    named: list[Any] = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    with torch.serialization.safe_globals([*types, *named]):
        yield
