"""The prompts of published zero-shot evaluations, and the sets that each of them is published for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Prompts = Literal["laion", "msclap", "wavcaps", "open_clip", "mteb", "evar", "ttmr"]
PROMPT_NAMES = get_args(Prompts)
_PUNCTUATION = re.compile(r'[(,.!?;:|*")]')

_POOLED = "accuracy"
_FOLDS = "mean_of_folds"
_MULTI_LABEL = "mAP"


@dataclass(frozen=True)
class PublishedPrompts:
    """The prompts of one publication.

    Args:
        url: where its code is.
        template: prompt, in which `{tag}` is replaced by the tag.
        metrics: for each set that it is published for, the metric that it gives.
        templates: prompts of sets that have their own.
        verbatim: sets whose tags keep their underscores; elsewhere, they become spaces.
        plain: sets whose tags are lowercase and without punctuation.
        differs: for sets where our evaluation is not the same, how the published one differs.
    """

    url: str
    template: str
    metrics: Mapping[str, str]
    templates: Mapping[str, str] = field(default_factory=dict)
    verbatim: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    differs: Mapping[str, str] = field(default_factory=dict)

    def prompt(self, tag: str, dataset: str | None) -> str:
        """The prompt for a tag of a set; None stands for a folder that is not a published set."""
        text = tag if dataset in self.verbatim else tag.replace("_", " ")
        if dataset in self.plain:
            text = " ".join(_PUNCTUATION.sub(" ", text.lower()).split())
        return self.templates.get(dataset or "", self.template).replace("{tag}", text)


PROMPTS: dict[Prompts, PublishedPrompts] = {
    "laion": PublishedPrompts(
        "https://github.com/LAION-AI/CLAP",
        "This is a sound of {tag}",
        dict.fromkeys(("esc50", "urbansound8k", "vggsound", "gtzan"), _POOLED),
        templates={"gtzan": "This audio is a {tag} song."},
        differs={
            "esc50": "the example in LAION's README scores fold 1 alone",
            "urbansound8k": "LAION's list of the classes has underscores, here spaces",
        },
    ),
    "msclap": PublishedPrompts("https://github.com/microsoft/CLAP", "this is the sound of {tag}", {"esc50": _POOLED}),
    "wavcaps": PublishedPrompts(
        "https://github.com/XinhaoMei/WavCaps",
        "{tag} can be heard",
        {"esc50": _FOLDS, "urbansound8k": _FOLDS, "vggsound": _POOLED},
        templates={"urbansound8k": "{tag}"},
        plain=("vggsound",),
    ),
    "open_clip": PublishedPrompts(
        "https://github.com/mlfoundations/open_clip", "This is a sound of {tag}.", {"esc50": _POOLED}
    ),
    "mteb": PublishedPrompts(
        "https://github.com/embeddings-benchmark/mteb",
        "This is a sound of {tag}",
        {"esc50": _POOLED, "urbansound8k": _POOLED},
        verbatim=("esc50",),
        differs={
            "urbansound8k": "mteb scores a stratified sample of the clips",
            "gtzan": "mteb trains a classifier on the embeddings",
            "fsd50k": "mteb trains a classifier on the embeddings, and its metric is lrap",
        },
    ),
    "evar": PublishedPrompts(
        "https://github.com/nttcslab/eval-audio-repr",
        "{tag} can be heard",
        {"esc50": _POOLED, "urbansound8k": _POOLED, "gtzan": _POOLED, "fsd50k": _MULTI_LABEL, "audioset": _MULTI_LABEL},
        templates={"gtzan": "{tag} music can be heard"},
    ),
    "ttmr": PublishedPrompts(
        "https://github.com/seungheondoh/music-text-representation",
        "{tag}",
        {"gtzan": _POOLED},
        differs={"gtzan": "TTMR averages 8 overlapping windows of each clip"},
    ),
}


def published_for(dataset: str | None) -> tuple[Prompts, ...]:
    """The prompts that are published for a set; LAION's for others."""
    return tuple(name for name in PROMPTS if dataset in PROMPTS[name].metrics) or ("laion",)
