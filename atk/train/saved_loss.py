"""What a run has learned besides its model: the temperature and the bias of its loss."""

from pathlib import Path

import torch

from atk.models.saved import model_folder

_STATE = "training.pt"


def saved_pair_loss(start: Path) -> tuple[float | None, float | None]:
    """Logit scale and bias of the loss of the run that a model is from; None where unknown.

    Args:
        start: run folder, or one of its checkpoints; anything else, such as an exported model, gives (None, None).

    Raises:
        ValueError: the state of the run is damaged.
        FileNotFoundError: the run folder holds no checkpoint.
    """
    file = model_folder(start) / _STATE
    if not file.is_file():
        return None, None
    try:
        criterion = torch.load(file, map_location="cpu", mmap=True, weights_only=True)["criterion"]
    except Exception as error:  # noqa: BLE001 (of many types, depending on what is damaged)
        raise ValueError(f"{file}: damaged or cut short ({' '.join(str(error).split())[:200]})") from None
    values = {name.rpartition(".")[2]: value for name, value in criterion.items()}
    scale, bias = values.get("log_logit_scale"), values.get("logit_bias")
    return None if scale is None else float(scale.exp()), None if bias is None else float(bias)
