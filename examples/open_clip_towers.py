"""The aligned loss on the towers of an open_clip CLAP: hooks capture frames and tokens; open_clip is unchanged.

    python examples/open_clip_towers.py --model CLAP-HTSAT-tiny-Roberta-base --data DIR --batch-size 32 --steps 1000

Needs torchlibrosa, and open_clip from its repository (releases up to 3.3.0 have no CLAP). The weights and tokenizer of
the text tower come from the hub, unless the model's configuration names local folders.
"""

import argparse
from itertools import islice

import torch
from torch import Tensor

import atk
from atk.data import read_split, train_loader
from atk.integrations.open_clip_towers import Towers
from atk.soundscapes import SoundscapeConfig, write_soundscapes


def fill(waveforms: Tensor, lengths: Tensor, samples: int) -> Tensor:
    """Repeat clips to `samples` samples, as CLAP does with short clips; returns `[N, samples]`, all frames valid."""
    index = torch.arange(samples) % lengths[:, None]
    return waveforms.gather(1, index)


def main(argv: list[str] | None = None) -> list[float]:
    """Train; returns the loss of every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="CLAP-HTSAT-tiny-Roberta-base", help="name of an open_clip configuration")
    parser.add_argument(
        "--pretrained", help="open_clip's name for the weights (default: random; the text tower is pretrained)"
    )
    parser.add_argument("--data", help="folder with train.csv (file_name, caption); default: synthetic scenes in runs/")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-4)
    args = parser.parse_args(argv)

    import open_clip

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = open_clip.get_tokenizer(args.model)
    clap = open_clip.create_model(args.model, pretrained=args.pretrained)
    towers = Towers(clap, tokenizer.tokenizer.all_special_ids).to(device).train()
    criterion = atk.nn.AlignedContrastiveLoss(temperature=0.07, learnable=True).to(device)
    optimizer = torch.optim.AdamW([*towers.parameters(), *criterion.parameters()], lr=args.lr)
    data = args.data or write_soundscapes("runs/example_scenes", SoundscapeConfig(train=16, test=0))
    samples = clap.audio.cfg.clip_samples
    rate = clap.audio.cfg.sample_rate
    clips = read_split(data, "train").clips
    loader = train_loader(clips, sample_rate=rate, clip_seconds=samples / rate, batch_size=args.batch_size)
    losses = []
    for step, batch in enumerate(islice(loader, args.steps)):
        waveforms = fill(batch.audio, batch.lengths, samples).to(device)
        loss = criterion(**towers(waveforms, tokenizer(batch.captions).to(device)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
