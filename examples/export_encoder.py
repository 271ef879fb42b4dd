"""Export both encoders with `torch.export`: two files that run with torch alone, checked against the model.

    python examples/export_encoder.py --out runs/exported                  # a small model of random weights
    python examples/export_encoder.py --out runs/exported --model FOLDER

FOLDER is what `CLAP.save_pretrained` wrote. The files take any number of captions of any length, and two or more clips
of two output frames or more.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from atk.models.clap import CLAP, ModelConfig

CAPTIONS = ["a dog barks", "a bell rings twice, then rain falls", "an engine"]


class AudioTower(nn.Module):
    """Waveforms `[N, S]` and valid samples `[N]` to the global vectors, the frames and their mask."""

    def __init__(self, model: CLAP):
        super().__init__()
        self.model = model

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(self.model.encode_audio(audio, lengths))


class TextTower(nn.Module):
    """What `CLAP.tokenize` returned for N captions to the global vectors, tokens, their mask and characters."""

    def __init__(self, model: CLAP):
        super().__init__()
        self.model = model

    def forward(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return tuple(self.model.encode_text(tokens))


@torch.no_grad()
def export_towers(model: CLAP) -> dict[str, ExportedProgram]:
    """Both towers as programs, dynamic in the number of clips or captions and in their length."""
    tokens = model.tokenize(CAPTIONS)
    audio = torch.zeros(3, 2 * model.sample_rate), torch.full((3,), 2 * model.sample_rate)
    any_shape = {0: Dim.AUTO, 1: Dim.AUTO}
    return {
        "audio": export(AudioTower(model), audio, dynamic_shapes=(any_shape, {0: Dim.AUTO})),
        "text": export(TextTower(model), (tokens,), dynamic_shapes=({key: any_shape for key in tokens},)),
    }


@torch.no_grad()
def largest_error(program: ExportedProgram, tower: nn.Module, *inputs) -> float:
    """Largest difference of an exported program's outputs from the eager tower's."""
    pairs = zip(program.module()(*inputs), tower(*inputs), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Export, save, load, compare with the model; return the largest error of each tower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of `CLAP.save_pretrained`; default: a small model of random weights")
    parser.add_argument("--out", type=Path, default=Path("runs/exported"))
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    model = (CLAP.from_pretrained(args.model) if args.model else CLAP.create(ModelConfig(dim=64), CAPTIONS)).eval()
    args.out.mkdir(parents=True, exist_ok=True)
    samples = 3 * model.sample_rate
    inputs = {
        "audio": (torch.randn(2, samples), torch.tensor([samples, 1])),
        "text": (model.tokenize(["thunder", "a cat meows while music plays in the next room"]),),
    }
    towers, errors = {"audio": AudioTower(model), "text": TextTower(model)}, {}
    for name, program in export_towers(model).items():
        torch.export.save(program, args.out / f"{name}.pt2")
        loaded = torch.export.load(args.out / f"{name}.pt2")
        errors[name] = largest_error(loaded, towers[name], *inputs[name])
        print(f"{args.out / name}.pt2: largest error {errors[name]:.1e}")
    return errors


if __name__ == "__main__":
    main()
