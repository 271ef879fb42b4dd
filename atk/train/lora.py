"""Low-rank adapters (LoRA) in the linear layers of a model, by peft, and the model with adapters merged into it."""

import copy
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from atk.extras import optional_imports
from atk.train import ranks
from atk.train.tune_config import LoraConfig


def adapter_targets(model: nn.Module, towers: Sequence[str], config: LoraConfig) -> list[str]:
    """Names of the linear layers that get adapters.

    Raises:
        ValueError: `config.targets` match no linear layer of the towers.
    """
    with optional_imports:
        import peft  # noqa: F401 (missing packages are reported before anything is written)

    targets = [name for name in _linear_layers(model, towers) if _matches(name, config.targets)]
    if not targets:
        raise ValueError(f"tune.lora.targets: no linear layer of the towers matches {config.targets}")
    return targets


def add_adapters(model: nn.Module, towers: Sequence[str], targets: list[str], config: LoraConfig) -> None:
    """Add adapters to linear layers; only they, and the weights outside the towers, then train.

    Args:
        model: changed in place.
        towers: names of its towers.
        targets: names of the layers, from `adapter_targets`.
        config: the adapters.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    trained = {name for name, weight in model.named_parameters() if weight.requires_grad and not _inside(name, towers)}
    settings = PeftConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets, bias="none"
    )
    inject_adapter_in_model(settings, model)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name or name in trained)


def save_base(model: nn.Module, path: Path) -> None:
    """Save the weights that adapters are about to be added to, for resuming; only the first rank writes."""
    with optional_imports:
        from safetensors.torch import save_model

    if ranks.is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, str(path))


def load_base(model: nn.Module, path: Path) -> None:
    """Load what `save_base` saved: checkpoints hold the weights with the adapters merged into them.

    Raises:
        ValueError: the file is missing or damaged.
    """
    with optional_imports:
        from safetensors import SafetensorError
        from safetensors.torch import load_model

    try:
        load_model(model, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot resume without the weights that the run started from ({error})") from None


def merged(model: nn.Module) -> nn.Module:
    """A copy of the model without adapters, whose weights include their effect."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    return model


def _linear_layers(model: nn.Module, towers: Sequence[str]) -> list[str]:
    """Names of the linear layers in the towers that can have adapters.

    Left out are frozen ones; those inside PyTorch's attention, which reads their weights and would bypass the adapters;
    and those that share their weights with another module, such as word embeddings, which merging would change too.
    """
    with optional_imports:
        from transformers.pytorch_utils import Conv1D  # the linear layer of GPT-2

    users = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    attention = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module.weight.requires_grad
        and users[id(module.weight)] == 1
        and _inside(name, towers)
        and not _inside(name, attention)
    ]


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
