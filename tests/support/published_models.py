"""Small models with random weights in the layouts of published ones: a ClapModel folder, LAION-CLAP, MS-CLAP 2023."""

import torch

from atk.models.clap import CLAP, ModelConfig
from atk.models.clap_transformers import ClapConfig
from atk.models.tokenizer import import_transformers

CAPTIONS = ["a dog barks", "a bell rings, then rain falls", "Été: naïve café", "engine"]
AUDIO = {
    "patch_size": 16, "patch_stride": [16, 16], "patch_embeds_hidden_size": 8, "hidden_size": 16, "window_size": 4,
    "depths": [1, 2], "num_attention_heads": [2, 4], "num_hidden_layers": 2,
}  # fmt: skip
FUSION = {"enable_fusion": True, "fusion_type": "aff_2d"}
BLOCK = {  # weights of an HTS-AT block: published name -> name in transformers
    "norm1.weight": "layernorm_before.weight",
    "norm1.bias": "layernorm_before.bias",
    "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
    "attn.relative_position_index": "attention.self.relative_position_index",
    "attn.proj.weight": "attention.output.dense.weight",
    "attn.proj.bias": "attention.output.dense.bias",
    "norm2.weight": "layernorm_after.weight",
    "norm2.bias": "layernorm_after.bias",
    "mlp.fc1.weight": "intermediate.dense.weight",
    "mlp.fc1.bias": "intermediate.dense.bias",
    "mlp.fc2.weight": "output.dense.weight",
    "mlp.fc2.bias": "output.dense.bias",
}
STEM = {
    "bn0.weight": "batch_norm.weight",
    "bn0.bias": "batch_norm.bias",
    "bn0.running_mean": "batch_norm.running_mean",
    "bn0.running_var": "batch_norm.running_var",
    "bn0.num_batches_tracked": "batch_norm.num_batches_tracked",
}


def small_clap(fusion=False, **text):
    """A ClapModel like the published ones, with larger patches and fewer layers."""
    transformers = import_transformers()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 64}
    text = {"vocab_size": 400, "max_position_embeddings": 60, "layer_norm_eps": 1e-5, **sizes, **text}
    audio = {**AUDIO, **(FUSION if fusion else {}), "hidden_dropout_prob": 0.0, "drop_path_rate": 0.1}
    model = transformers.ClapModel(transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=24))
    return randomized(model)


@torch.no_grad()
def randomized(model):
    """Change the weights and statistics that are the same in every new model."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.num_features == 64:
            module.running_mean.normal_(-30, 5)
            module.running_var.uniform_(50, 200)
    return model.eval()


def clap_folder(path, fusion=False, tokenizer=True, **text):
    """Write a folder like those on the hub; returns its ClapModel."""
    model = small_clap(fusion, **text)
    model.save_pretrained(path)
    transformers = import_transformers()
    truncation = "fusion" if fusion else "rand_trunc"
    transformers.ClapFeatureExtractor(truncation=truncation, frequency_min=50).save_pretrained(path)
    if tokenizer:
        random = ModelConfig(clap=ClapConfig(str(path), random_init=True))
        CLAP.create(random, CAPTIONS).text_encoder.tokenizer.save_pretrained(path)
    return model


def published_htsat(tower, filters):
    """The weights of a `ClapAudioModel.audio_encoder` under their published names, with those that are not used."""
    theirs = tower.state_dict()
    state = {old: theirs[new] for old, new in STEM.items()}
    state |= {name: theirs[name] for name in theirs if name.startswith(("patch_embed.", "norm."))}
    state |= {name: theirs[name] for name in theirs if ".downsample." in name}
    for stage, layer in enumerate(tower.layers):
        for block in range(len(layer.blocks)):
            prefix = f"layers.{stage}.blocks.{block}"
            state |= {f"{prefix}.{old}": theirs[f"{prefix}.{new}"] for old, new in BLOCK.items()}
            for tensor in ("weight", "bias"):
                parts = [theirs[f"{prefix}.attention.self.{part}.{tensor}"] for part in ("query", "key", "value")]
                state[f"{prefix}.attn.qkv.{tensor}"] = torch.cat(parts)
    return state | {
        "spectrogram_extractor.stft.conv_real.weight": torch.hann_window(1024).expand(513, 1, 1024).contiguous(),
        "spectrogram_extractor.stft.conv_imag.weight": torch.zeros(513, 1, 1024),
        "logmel_extractor.melW": filters,
        "layers.0.blocks.0.attn_mask": torch.zeros(4, 16, 16),
        "tscam_conv.weight": torch.zeros(9, 16, 2, 3),
        "head.weight": torch.zeros(9, 9),
    }


class Laion:
    """A file of LAION-CLAP, `file`; the same weights as a ClapModel, `model`; and a tokenizer in a folder."""

    def __init__(self, path, fusion=False):
        self.file, self.tokenizer = path / "630k-best.pt", path / "roberta"
        clap_folder(self.tokenizer)
        self.model = small_clap(fusion)
        transformers = import_transformers()
        self.extractor = transformers.ClapFeatureExtractor(
            frequency_min=50, truncation="fusion" if fusion else "rand_trunc"
        )
        self.save(self.state())

    def state(self):
        filters = torch.from_numpy(self.extractor.mel_filters_slaney).float()
        state = {"logit_scale_a": self.model.logit_scale_a.data, "logit_scale_t": self.model.logit_scale_t.data}
        tower = published_htsat(self.model.audio_model.audio_encoder, filters)
        state |= {f"audio_branch.{name}": value for name, value in tower.items()}
        state |= {f"text_branch.{name}": value for name, value in self.model.text_model.state_dict().items()}
        for part in ("audio", "text"):
            layers = getattr(self.model, f"{part}_projection").state_dict()
            for old, new in (("0", "linear1"), ("2", "linear2")):
                state |= {f"{part}_projection.{old}.{name}": layers[f"{new}.{name}"] for name in ("weight", "bias")}
            state[f"{part}_transform.sequential.0.weight"] = torch.zeros(24, 24)
        return state

    def save(self, state):
        """Write a checkpoint as it was written by training on many GPUs."""
        state = {f"module.{name}": value for name, value in state.items()}
        torch.save({"epoch": 3, "name": "630k", "state_dict": state, "optimizer": {"state": {}}}, self.file)


def gpt2_tokenizer(path):
    """A byte-level tokenizer like GPT-2's: no prefix space, no end token in captions, no padding token."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    import_transformers().GPT2TokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)


class MsClap:
    """A file of MS-CLAP 2023, `file`; the same weights as encoders of transformers; and a tokenizer in a folder."""

    def __init__(self, path):
        transformers = import_transformers()
        self.file, self.tokenizer = path / "weights.pth", path / "tokenizer"
        gpt2_tokenizer(self.tokenizer)
        self.htsat = randomized(transformers.ClapAudioModel(transformers.ClapAudioConfig(**AUDIO)))
        self.gpt2 = randomized(
            transformers.GPT2Model(
                transformers.GPT2Config(vocab_size=320, n_embd=128, n_layer=2, n_head=2, n_positions=50)
            )
        )
        self.filters = torch.from_numpy(
            transformers.audio_utils.mel_filter_bank(513, 64, 50, 14000, 32000, norm="slaney", mel_scale="slaney")
        ).float()
        self.projections = {
            part: {"linear1.weight": torch.randn(24, width) * 0.2, "linear2.weight": torch.randn(24, 24) * 0.2,
                   "layer_norm.weight": torch.rand(24) + 0.5, "layer_norm.bias": torch.randn(24)}
            for part, width in (("audio", 16), ("caption", 128))
        }  # fmt: skip
        torch.save({"model": self.checkpoint()}, self.file)

    def checkpoint(self):
        state = {"logit_scale": torch.tensor(4.6)}
        tower = published_htsat(self.htsat.audio_encoder, self.filters)
        state |= {f"audio_encoder.base.htsat.{name}": value for name, value in tower.items()}
        state |= {f"caption_encoder.base.{name}": value for name, value in self.gpt2.state_dict().items()}
        state["caption_encoder.base.h.0.attn.bias"] = torch.ones(1, 1, 50, 50)
        state["caption_encoder.base.h.0.attn.masked_bias"] = torch.tensor(-1e4)
        for part, weights in self.projections.items():
            state |= {f"{part}_encoder.projection.{name}": value for name, value in weights.items()}
        return state
