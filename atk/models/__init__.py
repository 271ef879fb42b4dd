"""Models to train, and loading a saved one without knowing which it is."""

from pathlib import Path


def from_pretrained(name: str | Path):
    """The `CLAP` or `Captioner` that its `save_pretrained` wrote: a local folder or a hub repository.

    Raises:
        ValueError: there is no such model.
    """
    from atk.models.captioner import Captioner
    from atk.models.clap import CLAP
    from atk.models.saved import find_model

    folder, values = find_model(name)
    return (Captioner if "decoder" in values else CLAP).from_pretrained(folder)
