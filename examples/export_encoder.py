"""Export both encoders with `torch.export`: two files that run with only torch, checked against the model.

    python examples/export_encoder.py --out runs/exported                  # a small model with random weights
    python examples/export_encoder.py --out runs/exported --model FOLDER

FOLDER is a folder written by `CLAP.save_pretrained`. The files take any number of captions of any length, and two or
more clips, each at least two output frames long.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from atk.models.clap import CLAP, ModelConfig

CAPTIONS = ["a dog barks", "a bell rings twice, then rain falls", "an engine"]


class AudioTower(nn.Module):
    """Maps waveforms `[N, S]` and their valid samples `[N]` to global vectors, frames, and their mask."""

    def __init__(self, model: CLAP):
        super().__init__()
        self.model = model

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled, frames, mask = self.model.encode_audio(audio, lengths)
        return pooled, frames, mask


class TextTower(nn.Module):
    """Maps the result of `CLAP.tokenize` for N captions to global vectors, tokens, their mask, and character spans."""

    def __init__(self, model: CLAP):
        super().__init__()
        self.model = model

    def forward(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pooled, features, mask, offsets = self.model.encode_text(tokens)
        return pooled, features, mask, offsets


@torch.no_grad()
def export_towers(model: CLAP) -> dict[str, ExportedProgram]:
    """Export both towers with a dynamic number of clips or captions and a dynamic length."""
    tokens = model.tokenize(CAPTIONS)
    audio = torch.zeros(3, 2 * model.sample_rate), torch.full((3,), 2 * model.sample_rate)
    any_shape = {0: Dim.AUTO, 1: Dim.AUTO}
    return {
        "audio": export(AudioTower(model), audio, dynamic_shapes=(any_shape, {0: Dim.AUTO})),
        "text": export(TextTower(model), (tokens,), dynamic_shapes=(dict.fromkeys(tokens, any_shape),)),
    }


@torch.no_grad()
def largest_error(program: ExportedProgram, tower: nn.Module, *inputs: Any) -> float:
    """Largest difference between the outputs of an exported program and those of the eager tower."""
    pairs = zip(program.module()(*inputs), tower(*inputs), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Export, save, load, and compare with the model; returns the largest error of each tower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="folder written by `CLAP.save_pretrained` (default: a small model with random weights)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/exported"), help="folder for audio.pt2 and text.pt2")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    model = (CLAP.from_pretrained(args.model) if args.model else CLAP.create(ModelConfig(dim=64), CAPTIONS)).eval()
    args.out.mkdir(parents=True, exist_ok=True)
    samples = 3 * model.sample_rate
    inputs: dict[str, tuple[Any, ...]] = {
        "audio": (torch.randn(2, samples), torch.tensor([samples, 1])),
        "text": (model.tokenize(["thunder", "a cat meows while music plays in the next room"]),),
    }
    towers: dict[str, nn.Module] = {"audio": AudioTower(model), "text": TextTower(model)}
    errors: dict[str, float] = {}
    for name, program in export_towers(model).items():
        torch.export.save(program, args.out / f"{name}.pt2")
        loaded = torch.export.load(args.out / f"{name}.pt2")
        errors[name] = largest_error(loaded, towers[name], *inputs[name])
        print(f"{args.out / name}.pt2: largest error {errors[name]:.1e}")
    return errors


if __name__ == "__main__":
    main()
