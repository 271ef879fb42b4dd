"""Models to train, and `from_pretrained`, which loads a saved model of any type."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atk.models.captioner import Captioner
    from atk.models.clap import CLAP


def from_pretrained(name: str | Path, tokenizer: str | None = None) -> "CLAP | Captioner":
    """Load a saved `CLAP`, `Captioner`, or `Unified` (which is a CLAP), whichever `name` holds.

    Args:
        name: a run folder (its best checkpoint); a local folder or hub repository that was written by
            `save_pretrained` or by a `transformers.ClapModel`; or a file of LAION-CLAP or MS-CLAP 2023.
        tokenizer: as in `CLAP.from_pretrained`.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: `name` holds no such model.
    """
    from atk.models.captioner import Captioner
    from atk.models.clap import CLAP
    from atk.models.saved import find_model
    from atk.models.unified import Unified, is_unified

    if Path(name).is_file():
        return CLAP.from_pretrained(name, tokenizer)
    folder, values = find_model(name)
    if is_unified(values):
        return Unified.from_pretrained(folder)
    return (Captioner if "decoder" in values else CLAP).from_pretrained(folder)
