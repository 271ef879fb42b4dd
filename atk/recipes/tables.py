"""The tables of the thesis: their rows, the recipe of each row, and the figures that the thesis gives."""

from dataclasses import dataclass
from typing import Literal

Evaluation = Literal["tagging", "captions", "retrieval", "listing"]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: name on the command line.
        label: name in the table.
        recipe: file of the recipe, without suffix.
        target: name of the data set whose held-out split is evaluated.
        figures: the thesis's figures, by column; None where it has none.
    """

    name: str
    label: str
    recipe: str
    target: str
    figures: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of the thesis.

    Attributes:
        title: what it compares.
        evaluation: how its runs are evaluated: see `atk.recipes.measure`.
        columns: its columns; lower is better for the median rank, higher for all others.
        rows: its rows.
        notes: what to know when comparing.
    """

    title: str
    evaluation: Evaluation
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def row(self, name: str) -> Row:
        """The row of this name; raises ValueError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"rows must be among {', '.join(row.name for row in self.rows)}, got {name!r}")


_TAGS = ("50 tags ROC", "50 tags PR", "1054 tags ROC", "1054 tags PR", "R@1", "R@5", "R@10", "mAP@10", "MedR")
_CAPTIONS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE", "SPIDEr")
_RETRIEVAL = ("R@1", "R@5", "R@10", "mAP@10")
_DIRECTION = (
    (
        "Text to audio, by the protocol retrieval. The thesis calls its task audio-to-text retrieval, but the figures "
        "that it quotes for LAION-CLAP are those of text to audio; the evaluation files have both directions."
    ),
    "A clip longer than the model's input is embedded as the average of its windows; MS-CLAP takes one random crop.",
)
_SWAPPED = (
    (
        "The headings AudioCaps and Clotho of this table are exchanged in the thesis (its Tables 5.1 and 5.2 have the "
        "same figures under the other names); the rows here are named after the data."
    ),
)


def _captions(name: str, label: str, recipe: str, *figures: float) -> Row:
    return Row(name, label, recipe, "clotho", figures)


def _audiocaps(name: str, label: str, *figures: float | None, recipe: str | None = None) -> Row:
    return Row(name, label, recipe or f"table_5_1/{name.replace('-', '_')}", "audiocaps", figures)


def _clotho(name: str, label: str, *figures: float | None, recipe: str | None = None) -> Row:
    return Row(name, label, recipe or f"table_5_2/{name.replace('-', '_')}", "clotho", figures)


def _ecals(name: str, label: str, *figures: float) -> Row:
    return Row(name, label, f"table_3_1/{name.replace('-', '_')}", "ecals", figures)


_MLP_AUDIOCAPS = _audiocaps(
    "mlp-audiocaps", "MLP-a2t, AudioCaps", 40.43, 74.18, 86.64, 55.19, recipe="table_5_1/mlp_audioset"
)
_MLP_CLOTHO = _clotho("mlp-clotho", "MLP-a2t, Clotho", 20.77, 45.36, 58.66, 31.43, recipe="table_5_2/mlp_audioset")
_ABLATION_NOTES = (
    *_SWAPPED,
    "AudioSet unlabeled. The rows of Tables 5.1 and 5.2 share their runs with them.",
    *_DIRECTION,
)

TABLES: dict[str, Table] = {
    "3.1": Table(
        "Text-to-music retrieval on ECALS",
        "tagging",
        _TAGS,
        (
            _ecals("triplet-glove", "Triplet with GloVe", 89.2, 36.0, 82.6, 6.1, 2.8, 11.2, 18.6, 6.6, 51.5),
            _ecals("triplet-bert", "Triplet with BERT", 87.7, 35.0, 78.8, 5.4, 6.7, 23.6, 36.6, 14.1, 16),
            _ecals("info-nce", "InfoNCE", 87.0, 32.5, 77.6, 5.1, 6.8, 25.4, 38.4, 15.3, 17),
            _ecals("stochastic", "InfoNCE, stochastic sampling", 89.8, 38.0, 84.8, 7.7, 10.2, 29.8, 42.8, 18.7, 13),
            _ecals("baseline", "Baseline (contrastive learning)", 89.7, 38.4, 84.2, 7.6, 9.5, 28.7, 42.9, 18.0, 12),
            _ecals("aligned", "Aligned contrastive", 90.3, 39.3, 84.9, 8.1, 9.6, 33.8, 47.8, 19.6, 11),
        ),
        (
            "By the protocols tagging and multi-query; MedR counts from 0, as in the published evaluation.",
            "The first four rows of the thesis are published figures; here, all rows are trained in the same way.",
        ),
    ),
    "4.1": Table(
        "Captions of Clotho, without a reference",
        "captions",
        _CAPTIONS,
        (
            _captions("baseline", "Baseline", "table_4_1/baseline",
                      0.585, 0.379, 0.251, 0.161, 0.179, 0.386, 0.399, 0.120, 0.259),
            _captions("al-mixgen", "AL-MixGen", "table_4_1/al_mixgen",
                      0.590, 0.384, 0.254, 0.164, 0.180, 0.392, 0.404, 0.122, 0.263),
            _captions("subtraction", "Subtraction", "table_4_1/subtraction",
                      0.593, 0.386, 0.257, 0.164, 0.181, 0.392, 0.403, 0.122, 0.264),
            _captions("mask", "Mask", "table_4_1/mask",
                      0.606, 0.395, 0.266, 0.173, 0.187, 0.405, 0.431, 0.129, 0.280),
        ),
    ),
    "4.2": Table(
        "Captions of Clotho by the reference in training (source/time)",
        "captions",
        _CAPTIONS,
        (
            _captions("subtraction", "Subtraction (same/same)", "table_4_1/subtraction",
                      0.590, 0.383, 0.253, 0.162, 0.180, 0.390, 0.403, 0.121, 0.262),
            _captions("mask", "Mask (same/same)", "table_4_1/mask",
                      0.606, 0.395, 0.266, 0.173, 0.187, 0.405, 0.431, 0.129, 0.280),
            _captions("mask-same-diff", "Mask (same/diff)", "table_4_2/mask_same_diff",
                      0.605, 0.394, 0.264, 0.171, 0.187, 0.405, 0.427, 0.129, 0.278),
            _captions("mask-diff-diff", "Mask (diff/diff)", "table_4_2/mask_diff_diff",
                      0.605, 0.392, 0.261, 0.168, 0.186, 0.406, 0.419, 0.126, 0.273),
            _captions("mask-multi-same", "Mask (multi/same)", "table_4_2/mask_multi_same",
                      0.606, 0.394, 0.264, 0.171, 0.187, 0.404, 0.419, 0.127, 0.273),
            _captions("mask-multi-diff", "Mask (multi/diff)", "table_4_2/mask_multi_diff",
                      0.603, 0.389, 0.259, 0.167, 0.184, 0.401, 0.414, 0.127, 0.271),
        ),
        (
            (
                "Captions of the clips alone, as in Table 4.1: the thesis gives the mask the same figures in both "
                "tables. Its figures for subtraction differ between them. The evaluation files also score the captions "
                "of Diff(mix, added)."
            ),
            "The rows subtraction and mask share their runs with Table 4.1.",
        ),
    ),
    "4.3": Table(
        "Captions of clips, of mixtures, and of their differences",
        "listing",
        (),
        (Row("baseline", "Baseline", "table_4_1/baseline", "clotho"), Row("mask", "Mask", "table_4_1/mask", "clotho")),
        (
            "The baseline subtracts the features of the reference, as the thesis does not say how it takes one.",
            "The rows share their runs with Table 4.1.",
        ),
    ),
    "5.1": Table(
        "Retrieval on AudioCaps",
        "retrieval",
        _RETRIEVAL,
        (
            _audiocaps("clap", "MS-CLAP, not fine-tuned", 15.79, 46.21, 62.94, 28.67),
            _audiocaps("finetuned", "MS-CLAP, fine-tuned on AudioCaps", 39.41, 75.88, 86.86, 54.61),
            _audiocaps("finetuned-both", "MS-CLAP, fine-tuned on AudioCaps and Clotho", 40.32, 74.18, 86.75, 55.09),
            _audiocaps("mlp-clotho", "MLP-a2t, Clotho unlabeled", 36.01, 75.76, 87.43, 52.57),
            _audiocaps("mlp-audioset", "MLP-a2t, AudioSet unlabeled", 40.43, 74.18, 86.64, 55.19),
            _audiocaps("transformer-clotho", "Transformer-a2t (L = 2), Clotho unlabeled", 39.86, 75.20, 88.45, 55.03),
            _audiocaps(
                "transformer-audioset", "Transformer-a2t (L = 2), AudioSet unlabeled", 42.02, 75.88, 88.00, 56.16
            ),
            _audiocaps("al-mixgen", "AL-MixGen, AudioCaps and Clotho", 40.54, 76.90, 88.11, 55.12),
            _audiocaps("laion-clap", "LAION-CLAP, not fine-tuned", 34.20, 71.10, 84.10, None),
            _audiocaps("t-clap", "T-CLAP, not fine-tuned", 39.70, 74.60, 86.90, None),
        ),
        _DIRECTION,
    ),
    "5.2": Table(
        "Retrieval on Clotho",
        "retrieval",
        _RETRIEVAL,
        (
            _clotho("clap", "MS-CLAP, not fine-tuned", 15.75, 39.94, 52.27, 25.99, recipe="table_5_1/clap"),
            _clotho("finetuned", "MS-CLAP, fine-tuned on Clotho", 19.71, 45.55, 59.62, 30.80),
            _clotho("finetuned-both", "MS-CLAP, fine-tuned on Clotho and AudioCaps", 19.52, 45.75, 59.64, 31.00),
            _clotho("mlp-audiocaps", "MLP-a2t, AudioCaps unlabeled", 20.19, 45.36, 59.71, 30.82),
            _clotho("mlp-audioset", "MLP-a2t, AudioSet unlabeled", 20.77, 45.36, 58.66, 31.43),
            _clotho(
                "transformer-audiocaps", "Transformer-a2t (L = 2), AudioCaps unlabeled", 20.19, 45.93, 59.52, 31.22
            ),
            _clotho("transformer-audioset", "Transformer-a2t (L = 2), AudioSet unlabeled", 20.57, 46.60, 58.56, 31.79),
            _clotho("al-mixgen", "AL-MixGen, Clotho and AudioCaps", 21.34, 46.99, 59.33, 32.52),
            _clotho("laion-clap", "LAION-CLAP, not fine-tuned", 15.30, 38.40, 51.20, None,
                    recipe="table_5_1/laion_clap"),
            _clotho("t-clap", "T-CLAP, not fine-tuned", 17.30, 39.90, 53.00, None, recipe="table_5_1/t_clap"),
        ),
        _DIRECTION,
    ),
    "5.3": Table(
        "Mappers and the number of pseudo-tokens",
        "retrieval",
        _RETRIEVAL,
        (
            _MLP_AUDIOCAPS,
            _audiocaps("transformer-1-audiocaps", "Transformer-a2t, L = 1, AudioCaps", 41.56, 73.39, 87.09, 55.33,
                       recipe="table_5_3/transformer_1_audiocaps"),
            _audiocaps("transformer-2-audiocaps", "Transformer-a2t, L = 2, AudioCaps", 42.02, 75.88, 88.00, 56.16,
                       recipe="table_5_1/transformer_audioset"),
            _audiocaps("transformer-4-audiocaps", "Transformer-a2t, L = 4, AudioCaps", 41.22, 74.75, 86.52, 55.71,
                       recipe="table_5_3/transformer_4_audiocaps"),
            _MLP_CLOTHO,
            _clotho("transformer-1-clotho", "Transformer-a2t, L = 1, Clotho", 21.15, 46.03, 59.14, 31.77,
                    recipe="table_5_3/transformer_1_clotho"),
            _clotho("transformer-2-clotho", "Transformer-a2t, L = 2, Clotho", 20.57, 46.60, 58.56, 31.79,
                    recipe="table_5_2/transformer_audioset"),
            _clotho("transformer-4-clotho", "Transformer-a2t, L = 4, Clotho", 20.19, 46.79, 57.89, 31.34,
                    recipe="table_5_3/transformer_4_clotho"),
        ),
        _ABLATION_NOTES,
    ),
    "5.4": Table(
        "What the noise and the loss on unlabeled clips contribute",
        "retrieval",
        _RETRIEVAL,
        (
            _MLP_AUDIOCAPS,
            _audiocaps("no-noise-audiocaps", "without noise, AudioCaps", 39.98, 74.97, 87.88, 54.86,
                       recipe="table_5_4/no_noise_audiocaps"),
            _audiocaps("no-unlabeled-loss-audiocaps", "without L_unlabeled, AudioCaps", 38.39, 74.41, 87.20, 53.97,
                       recipe="table_5_4/no_unlabeled_loss_audiocaps"),
            _MLP_CLOTHO,
            _clotho("no-noise-clotho", "without noise, Clotho", 20.38, 42.68, 56.46, 30.27,
                    recipe="table_5_4/no_noise_clotho"),
            _clotho("no-unlabeled-loss-clotho", "without L_unlabeled, Clotho", 19.23, 43.35, 54.45, 29.17,
                    recipe="table_5_4/no_unlabeled_loss_clotho"),
        ),
        _ABLATION_NOTES,
    ),
}  # fmt: skip
