"""The aligned loss on a `transformers.ClapModel`, in an ordinary training loop.

    python examples/clap_training_loop.py       # a small model with random weights on synthetic scenes, offline
    python examples/clap_training_loop.py --pretrained laion/clap-htsat-unfused --data DIR --batch-size 32 --lr 1e-5

Needs the extra `train`, which includes transformers.
"""

import argparse
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch

import atk
from atk.data import Batch, read_split, train_loader
from atk.integrations.transformers import AlignedClap, ClapCollator
from atk.models.text import train_tokenizer
from atk.models.tokenizer import import_transformers
from atk.soundscapes import SoundscapeConfig, write_soundscapes

transformers = import_transformers()  # also works if torchaudio was built for a different torch


def small_model(captions: list[str]) -> tuple[Any, Any, Any]:
    """A ClapModel with few layers and large patches, a tokenizer trained on `captions`, and a feature extractor."""
    tokenizer = train_tokenizer(captions, 500)
    audio = {
        "patch_size": 16, "patch_stride": [16, 16], "patch_embeds_hidden_size": 16, "hidden_size": 32, "window_size": 4,
        "depths": [1, 1], "num_attention_heads": [2, 2], "num_hidden_layers": 2,
    }  # fmt: skip
    text = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=32)
    return transformers.ClapModel(config), tokenizer, transformers.ClapFeatureExtractor(truncation="rand_trunc")


def pretrained_model(name: str) -> tuple[Any, Any, Any]:
    """A checkpoint with its tokenizer and feature extractor."""
    model = transformers.ClapModel.from_pretrained(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    return model, tokenizer, transformers.ClapFeatureExtractor.from_pretrained(name)


def rows(batch: Batch) -> list[dict[str, Any]]:
    """The clips of a batch, without padding, and their captions, as `ClapCollator` takes them."""
    clips = zip(batch.audio, batch.lengths, batch.captions, strict=True)
    return [{"audio": clip[:length].numpy(), "caption": caption} for clip, length, caption in clips]


def main(argv: list[str] | None = None) -> list[float]:
    """Train; returns the loss of every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pretrained", help="local folder or hub name of a ClapModel (default: a small model with random weights)"
    )
    parser.add_argument("--data", help="folder with train.csv (file_name, caption); default: synthetic scenes in runs/")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    data = args.data or write_soundscapes("runs/example_scenes", SoundscapeConfig(train=16, test=0))
    clips = read_split(data, "train").clips
    captions = [caption for clip in clips for caption in clip.captions]
    model, tokenizer, extractor = pretrained_model(args.pretrained) if args.pretrained else small_model(captions)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    aligned = AlignedClap(model, atk.nn.AlignedContrastiveLoss(temperature=0.07, learnable=True)).to(device).train()
    collate = ClapCollator(SimpleNamespace(tokenizer=tokenizer, feature_extractor=extractor))
    optimizer = torch.optim.AdamW([weight for weight in aligned.parameters() if weight.requires_grad], lr=args.lr)
    loader = train_loader(clips, sample_rate=48000, clip_seconds=10, batch_size=args.batch_size)
    losses = []
    for step, batch in enumerate(islice(loader, args.steps)):
        inputs = {name: value.to(device) for name, value in collate(rows(batch)).items()}
        loss = aligned(**inputs)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step}: loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
