"""One model trained by `L_global + L_align + L_mix + L_unlabeled` and by captioning with audio difference."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.data import MixtureBatch, MixtureDataset
from atk.eval.captioning import CaptionSplit
from atk.eval.retrieval import evaluate_retrieval
from atk.models import from_pretrained
from atk.models.caption_model import References
from atk.models.clap import CLAP, AudioEmbedding
from atk.models.unified import ClipFeatures, Unified, starting_config
from atk.nn import AlignedContrastiveLoss, CrossAttentionDifference
from atk.ops.backend import BACKENDS
from atk.train.aligned import pair_embeddings
from atk.train.captioning import evaluate_captioning, log_likelihood, reference_pool, share_of_tokens
from atk.train.contrastive import readings_of, train_contrastive
from atk.train.grad_cache import Embeddings
from atk.train.run import checkpoint_to_resume
from atk.train.semisupervised import UnlabeledTask
from atk.train.semisupervised_batch import SemiSupervisedBatch, mixture
from atk.train.semisupervised_criterion import SemiSupervisedCriterion
from atk.train.unified_config import UnifiedConfig

_CAPTIONING = ("projection", "difference_block", "decoder")
_RETRIEVAL = ("audio_projection", "text_encoder", "text_projection")
Waveforms = tuple[Tensor, Tensor]  # `[N, S]` and their valid samples `[N]`


class UnifiedTask(UnlabeledTask[UnifiedConfig]):
    """Contrastive learning and captioning with one model, for `atk.train.trainer.Trainer`.

    Args:
        config: the run.
        device: device to train on.
        checkpoint: saved model to resume from; None starts a new run.

    Raises:
        ValueError, FileNotFoundError, AudioError, BackendError: as for `UnlabeledTask`, `CaptionSplit`, and
            `MixtureDataset`.
    """

    method = "unified"
    model: Unified  # pyrefly: ignore[bad-override-mutable-attribute]  # `load_model` returns one

    def prepare(self) -> None:
        """Prepare the schedules of the loss and captioning, and freeze what is not trained."""
        config = self.config
        self.monitor = config.monitor
        self.total_steps = config.total_steps(self.steps_per_epoch)
        self.weights = config.loss.weights(0.0)
        self.caption_evaluation: CaptionSplit | None = None
        self.caption_validation: MixtureDataset | None = None
        self.freeze_unused()
        if config.captions:
            self._prepare_captioning()

    def freeze_unused(self) -> None:
        """Freeze what no term of the loss trains."""
        config = self.config
        for name in (() if config.captions else _CAPTIONING) + (() if config.retrieves else _RETRIEVAL):
            if (module := getattr(self.model, name)) is not None:
                module.requires_grad_(False)

    def _prepare_captioning(self) -> None:
        """Choose the backend of the Diff block, and create the data sets of captioning."""
        config = self.config
        block = self.model.difference_block
        if isinstance(block, CrossAttentionDifference) and config.backend in BACKENDS["cross_attention_difference"]:
            block.backend = config.backend
        pool = None if block is None else reference_pool(config.mix, self.recordings, config.on_error)
        options = (self.model.sample_rate, config.clip_seconds, config.seed)
        self.dataset = MixtureDataset(self.clips, *options, mix=config.mix, pool=pool, keep_inputs=True)
        if self.held_out:  # read now, so that errors in it show up before training and not after it
            reading = self.reading_options()
            self.caption_evaluation = CaptionSplit(self.data, self.held_out, mix=config.mix, **reading)
        if self.has("val"):
            clips = self.data.read("val", config.on_error).clips
            self.caption_validation = MixtureDataset(clips, *options, mix=config.mix, pool=None)

    def load_model(self, checkpoint: Path | None) -> Unified:
        """The saved model to start from, a saved contrastive model with a new decoder, or a new model."""
        if checkpoint is None:
            return Unified.create(self.config.model, self.captions)
        model = from_pretrained(checkpoint)
        if isinstance(model, Unified):
            return model
        if not isinstance(model, CLAP):
            raise ValueError(f"init: {checkpoint} holds a {type(model).__name__}, which has no text encoder")
        return Unified.extend(model, self.config.model, self.captions)

    def make_criterion(self) -> SemiSupervisedCriterion:
        """The loss of pairs, whose terms share a temperature, and the mapper that is trained along with it."""
        loss = self.config.loss
        start = self.starting_point
        criterion = AlignedContrastiveLoss(
            start.temperature,
            loss.learns,
            loss.reduction,
            direction=loss.direction,
            skip_below=loss.skip_below,
            backend=self.config.backend,
            gather=self.config.gather,
            loss=loss.kind,
            bias=start.bias,
        )
        return SemiSupervisedCriterion(criterion, self.make_mapper() if self.config.uses_unlabeled else None)

    def batches(self, start_step: int) -> Iterator[SemiSupervisedBatch]:
        """Training batches from a step on; while a batch is used, `weights` are those of its step."""
        for step, batch in enumerate(super().batches(start_step), start_step):
            self.weights = self.config.loss.weights(step / self.total_steps)
            yield batch

    def encode(self, batch: SemiSupervisedBatch) -> Embeddings:
        """What each term of the loss at this step needs, as in `AlignedTask`, `UnlabeledTask`, and `DifferenceTask`.

        All audio of the batch is encoded at once. A clip without a reference is encoded once for all terms.
        """
        labeled = batch.labeled
        rows = self._captioned_rows(labeled)
        references = None
        if rows and isinstance(labeled, MixtureBatch):
            references = self.model.present_references(labeled.references, labeled.reference_lengths)
        encoded = self._encode_audio(self._waveforms(batch, rows, references))
        captions = self.model.tokenize(labeled.captions, self.criterion.pseudo_tokens) if labeled.files else {}
        embeddings: Embeddings = {}
        if self._contrasts_pairs and labeled.files:
            text = self.model.encode_text(captions)
            embeddings |= pair_embeddings(encoded["clips"].embedding, text, "aligned" in self.weights)
        if "unlabeled" in encoded:
            mixed = (lambda: encoded["mix"].embedding.pooled) if "mix" in encoded else None
            unlabeled = encoded["unlabeled"].embedding
            embeddings |= self.unlabeled_terms(captions, unlabeled, mixed, "unlabeled" in self.weights)
        if "caption" in self.weights and labeled.files:
            assert isinstance(labeled, MixtureBatch)
            embeddings |= self._caption_loss(labeled, encoded, rows, references)
        return embeddings

    @property
    def _contrasts_pairs(self) -> bool:
        return "global" in self.weights or "aligned" in self.weights

    def _captioned_rows(self, labeled: Any) -> list[int]:
        """The clips that are encoded for the decoder alone: mixtures, or all if no other term encodes the clips."""
        if "caption" not in self.weights:
            return []
        return [row for row, added in enumerate(labeled.added) if added or not self._contrasts_pairs]

    def _waveforms(
        self, batch: SemiSupervisedBatch, rows: list[int], references: References | None
    ) -> dict[str, Waveforms]:
        """The audio to encode by name, without empty parts."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        audio: dict[str, Waveforms] = {}
        if isinstance(labeled, MixtureBatch):
            if rows:
                audio["captioned"] = labeled.audio[rows], labeled.lengths[rows]
            if references is not None:
                audio["references"] = references.audio, references.lengths
            labeled = labeled.unmixed()
        if self._contrasts_pairs and labeled.files:
            audio["clips"] = labeled.audio, labeled.lengths
        if unlabeled is not None and unlabeled.files and self.weights.keys() & {"mix", "unlabeled"}:
            audio["unlabeled"] = unlabeled.audio, unlabeled.lengths
            pairs = min(len(labeled), len(unlabeled))
            if pairs and "mix" in self.weights:
                audio["mix"] = mixture(labeled, unlabeled, pairs)
        return audio

    def _encode_audio(self, audio: Mapping[str, Waveforms]) -> dict[str, ClipFeatures]:
        """Encode all waveforms in one batch, so that sharded ranks encode equally often, and take it apart again."""
        if not audio:
            return {}
        longest = max(waveforms.shape[1] for waveforms, _ in audio.values())
        padded = [F.pad(waveforms, (0, longest - waveforms.shape[1])) for waveforms, _ in audio.values()]
        lengths = [part for _, part in audio.values()]
        embedding, features = self.model.encode_clips(torch.cat(padded), torch.cat(lengths))
        sizes = [len(part) for part in lengths]
        parts = zip(*(value.split(sizes) for value in (*embedding, features)), strict=True)
        return {
            name: ClipFeatures(AudioEmbedding(*shared), decoder_features)
            for name, (*shared, decoder_features) in zip(audio, parts, strict=True)
        }

    def _caption_loss(
        self,
        labeled: MixtureBatch,
        encoded: Mapping[str, ClipFeatures],
        rows: list[int],
        references: References | None,
    ) -> Embeddings:
        """Cross-entropy as in `DifferenceTask`: (4.9), or (4.3) for clips without a reference."""
        if "clips" in encoded and "captioned" in encoded:
            z, mask = encoded["clips"].decoder_input
            z = z.index_copy(0, torch.tensor(rows, device=z.device), encoded["captioned"].features)
        else:
            z, mask = encoded["captioned" if rows else "clips"].decoder_input
        given, present = None, labeled.reference_lengths > 0
        if references is not None:
            given, present = encoded["references"].decoder_input, references.present
        tokens = self.model.decoder.tokenize(labeled.captions)
        loss = self.model.decode_loss((z, mask), given, present, tokens, labeled.common)
        count = torch.tensor([int(tokens["attention_mask"].sum())], device=self.device)
        return {"caption loss": loss[None], "caption tokens": count}

    def loss_of(self, embeddings: Embeddings) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the terms at this step, and the terms: (3.5), (3.6), (5.10), (5.15), (4.9)."""
        pair_loss = self.criterion.pair_loss
        assert isinstance(pair_loss, AlignedContrastiveLoss)
        terms: dict[str, Tensor] = {}
        for name in self.weights:
            if name == "global" and "audio" in embeddings:
                terms[name] = pair_loss.global_term(embeddings["audio"], embeddings["text"])
            elif name == "aligned" and "frames" in embeddings:
                masks = embeddings["frame_mask"], embeddings["token_mask"]
                terms[name] = pair_loss.aligned_term(embeddings["frames"], embeddings["tokens"], *masks)
            elif name == "caption" and "caption loss" in embeddings:
                terms[name] = share_of_tokens(embeddings["caption loss"], embeddings["caption tokens"])
            elif f"{name} audio" in embeddings:
                terms[name] = pair_loss.global_term(embeddings[f"{name} audio"], embeddings[f"{name} text"])
        loss = torch.zeros((), device=self.device)
        for name, term in terms.items():
            loss = loss + self.weights[name] * term
        return loss, terms

    def idle(self) -> list[nn.Module]:
        """What only those terms train whose weight is 0 at this step."""
        names = () if "caption" in self.weights else _CAPTIONING
        names += () if self.weights.keys() - {"caption"} else _RETRIEVAL
        modules = [getattr(self.model, name) for name in names]
        if not self.weights.keys() & {"mix", "unlabeled"}:
            modules.append(self.criterion.mapper)
        if not self.weights.keys() - {"caption"}:
            modules.append(self.criterion.pair_loss)
        return [module for module in modules if module is not None]

    def readings(self) -> dict[str, Tensor]:
        """The inverse of the temperature, and the bias of the sigmoid loss."""
        return readings_of(self.criterion.pair_loss) if self.config.retrieves else {}

    def validate(self) -> dict[str, float]:
        """Retrieval metrics, log-likelihood of captions, and their mean in percent; of what is trained.

        Raises:
            ValueError: no clip can be decoded.
            AudioError: with `on_error="raise"`, a clip cannot be decoded.
        """
        metrics = super().validate() if self.config.retrieves else {}
        scores = [metrics["mAP@10"]] if self.config.retrieves else []
        if self.caption_validation is not None:
            name = self.data.first_with("val").name
            value = log_likelihood(self.model, self.caption_validation, name=name, **self.pass_options())
            metrics["log_likelihood"] = value
            scores.append(100 * math.exp(value))
        return metrics | {"score": sum(scores) / len(scores)}

    def evaluate(self, checkpoint: Path) -> dict[str, Any]:
        """Metrics of a saved model on the held-out split: of retrieval, and under "captioning" those of captions."""
        assert self.evaluation is not None
        model = Unified.from_pretrained(checkpoint).to(self.device)
        result: dict[str, Any] = {}
        if self.config.retrieves:
            result = evaluate_retrieval(model, self.evaluation.embed(model, f"evaluate {self.held_out}"))
        if self.caption_evaluation is not None:
            result["captioning"] = evaluate_captioning(model, self.caption_evaluation, self.held_out, self.config)
        return result


def train(config: UnifiedConfig, resume: bool = False) -> dict[str, Any] | None:
    """Train one model by all methods; arguments, result, and errors: see `atk.train.run.run`."""
    last = checkpoint_to_resume(config, resume)
    if last is not None:  # runs that were started before this setting go on without it
        trims = Unified.saved_config(last).trim_references
        config = replace(config, model=replace(config.model, trim_references=trims))
    return train_contrastive(UnifiedTask, config, resume, lambda name: starting_config(name, config.model))
