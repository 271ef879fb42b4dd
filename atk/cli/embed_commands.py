"""The commands that write embeddings and models: their arguments, and what they do."""

import shlex
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from atk.cli.model_arguments import (
    add_long_clips,
    add_reading_arguments,
    add_run_arguments,
    load,
    reading_arguments,
)
from atk.cli.output import print_result, report_skipped


def add_embed(parser: ArgumentParser) -> None:
    """Add the arguments of `atk embed`."""
    add_run_arguments(parser)
    add_reading_arguments(parser)
    parser.add_argument("folder", type=str, help="folder of audio files, searched recursively, or any other data set")
    parser.add_argument(
        "--out",
        type=str,
        required=True,
        help="file to write: vectors as .npy, with the names next to it as .csv; or both as .parquet (extra hub)",
    )
    add_long_clips(parser)


def run_embed(arguments: Namespace) -> None:
    """Run `atk embed`."""
    from atk.eval.tables import check_table, embed_folder, write_table
    from atk.models.clap import CLAP

    check_table(arguments.out)
    model = load(arguments, CLAP)
    embedded = embed_folder(model, arguments.folder, progress="embed", **reading_arguments(arguments))
    report_skipped(embedded.skipped)
    print_result("\n".join(map(str, write_table(Path(arguments.out), embedded))))


def add_export(parser: ArgumentParser) -> None:
    """Add the arguments of `atk export`."""
    from atk.models.export import Format

    parser.add_argument(
        "run", type=str, metavar="model", help="run folder, or any other source that `atk search` takes"
    )
    parser.add_argument("out", type=str, help="folder to write to, which must be new or empty")
    parser.add_argument(
        "--format",
        type=Format,
        default="transformers",
        help="a ClapModel folder of transformers; programs of torch.export; or ONNX (extra export)",
    )
    parser.add_argument("--tokenizer", type=str | None, default=None, help="as for `atk search`")
    parser.add_argument(
        "--push", type=str | None, default=None, metavar="REPO", help="also upload the folder to this hub repository"
    )


def run_export(arguments: Namespace) -> None:
    """Run `atk export`."""
    from atk.eval.model_card import model_card
    from atk.eval.publish import check_folder, upload
    from atk.models.clap import CLAP
    from atk.models.export import export_model
    from atk.train.saved_loss import saved_pair_loss

    folder = check_folder(arguments.out)
    model = CLAP.from_pretrained(arguments.run, arguments.tokenizer)
    words = ["atk", "export", arguments.run, arguments.out, "--format", arguments.format]
    card = model_card(model, arguments.run, arguments.format, shlex.join(words))
    logit_scale, _ = saved_pair_loss(Path(arguments.run))
    error = export_model(model, folder, arguments.format, logit_scale)
    (folder / "README.md").write_text(card, encoding="utf-8")
    print_result(f"{folder}: largest difference from the model {error:.1e}")
    if arguments.push is not None:
        print_result(upload(folder, arguments.push))
