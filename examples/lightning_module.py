"""Aligned contrastive learning as a Lightning module: atk's model, data, and loss in Lightning's trainer.

    python examples/lightning_module.py                              # a small model on synthetic scenes, offline
    python examples/lightning_module.py --data DIR --steps 10000 --batch-size 256 --devices 4

Needs `pip install lightning`.
"""

import argparse

import lightning as L
import torch
from torch import Tensor

import atk
import atk.distributed
from atk.data import Batch, Clip, Loader, read_split, train_loader
from atk.models.clap import CLAP, ModelConfig
from atk.soundscapes import SoundscapeConfig, write_soundscapes


class AlignedCLAP(L.LightningModule):
    """A CLAP model trained with `L_total = L_global + L_align` on the pairs of all ranks."""

    def __init__(self, model: CLAP, clips: list[Clip], batch_size: int, lr: float = 1e-3):
        super().__init__()
        self.model = model
        self.clips = clips
        self.batch_size = batch_size
        self.lr = lr
        self.criterion = atk.nn.AlignedContrastiveLoss(temperature=0.2, learnable=True, gather="all")

    def train_dataloader(self) -> Loader:
        """An endless loader; each rank reads its part of every batch."""
        return train_loader(
            self.clips, sample_rate=self.model.sample_rate, clip_seconds=5, batch_size=self.batch_size,
            rank=self.trainer.global_rank, world_size=self.trainer.world_size,
        )  # fmt: skip

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """This rank's share of the loss, scaled for DDP."""
        audio, text = self.model(batch.audio, batch.lengths, self.model.tokenize(batch.captions))
        share = self.criterion(audio.pooled, text.pooled, audio.frames, text.tokens, audio.mask, text.mask)
        values = {"loss": atk.distributed.total(share), "logit_scale": self.criterion.logit_scale}
        self.log_dict(values, prog_bar=True, batch_size=len(batch))
        return share * atk.distributed.ddp_factor()  # DDP averages gradients, but those of the shares must be summed

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW for the model and the temperature."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def main(argv: list[str] | None = None) -> float:
    """Train; returns the loss of the last step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with train.csv (file_name, caption); default: synthetic scenes in runs/")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=16, help="clips per step on all devices")
    parser.add_argument("--devices", type=int, default=1)
    args = parser.parse_args(argv)

    L.seed_everything(0, verbose=False)
    data = args.data or write_soundscapes("runs/example_scenes", SoundscapeConfig(train=16, test=0))
    clips = read_split(data, "train").clips
    model = CLAP.create(ModelConfig(dim=64), [caption for clip in clips for caption in clip.captions])
    trainer = L.Trainer(
        max_steps=args.steps, devices=args.devices, use_distributed_sampler=False, logger=False,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(AlignedCLAP(model, clips, args.batch_size))
    loss = trainer.callback_metrics["loss"].item()
    print(f"loss {loss:.3f}")
    return loss


if __name__ == "__main__":
    main()
