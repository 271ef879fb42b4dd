"""A stand-in for open_clip's CLAP, which is in no release."""

import torch.nn.functional as F
from torch import nn


class ClapStandIn(nn.Module):
    """The parts of open_clip's CLAP that we use, with the same structure and a real RoBERTa as text tower."""

    def __init__(self, pad_token_id=1):
        from atk.models.tokenizer import import_transformers

        super().__init__()
        transformers = import_transformers()
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = transformers.RobertaConfig(vocab_size=50, pad_token_id=pad_token_id, **sizes)
        self.audio, self.text = nn.Module(), nn.Module()
        self.audio.encoder, self.audio.proj = nn.Linear(100, 3 * 24), nn.Linear(24, 8)
        self.audio.encoder.forward, self.audio.pre_norm = self.htsat, False
        self.text.transformer, self.text.proj = transformers.RobertaModel(config), nn.Linear(16, 8)
        self.text.config = config

    def htsat(self, x, device=None):
        encoder = self.audio.encoder
        frames = F.linear(x["waveform"], encoder.weight, encoder.bias).unflatten(1, (3, 24))
        return {"embedding": frames.mean(1), "fine_grained_embedding": frames.repeat_interleave(32, 1)}

    def encode_audio(self, audio):
        embedding = self.audio.encoder(audio, device="cpu")["embedding"]
        return self.audio.proj(F.normalize(embedding, dim=-1) if self.audio.pre_norm else embedding)

    def encode_text(self, text):
        mask = (text != self.text.config.pad_token_id).long()
        return self.text.proj(self.text.transformer(input_ids=text, attention_mask=mask).pooler_output)
