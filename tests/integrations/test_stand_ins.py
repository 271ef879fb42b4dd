"""Adapters of libraries that cannot be installed beside ours, on stand-ins with the names that the adapters rebind.

The other files of this folder test the same adapters with every version of the real libraries (.ci/integrations.py).
"""

import pytest
import torch
import torch.nn.functional as F
from support import stand_ins
from support.clap_stand_in import ClapStandIn
from support.example_cases import naive_info_nce, naive_similarity
from support.integrations import assert_all_close, embeddings, gradients, our_ops_run, ragged

from atk.integrations import colpali, open_clip, pylate
from atk.integrations.open_clip_towers import AlignedClipLoss, Towers


@pytest.fixture
def scores(monkeypatch):
    stand_ins.installed(monkeypatch, pylate)
    return stand_ins.pylate(monkeypatch)


@pytest.mark.parametrize("with_masks", [False, True])
def test_pylate_scores_and_gradients(scores, with_masks):
    queries, documents, groups = embeddings(3, 6, 16), embeddings(3, 9, 16), embeddings(3, 2, 9, 16)
    masks = {"queries_mask": ragged(3, 6).double(), "documents_mask": ragged(3, 9)} if with_masks else {}
    grouped = masks and masks | {"documents_mask": ragged(3, 2, 9)}
    for score, leaves, ours in (
        (lambda: scores.colbert_scores(queries, documents, **masks), [queries, documents], None),
        (
            lambda: scores.colbert_scores(
                queries, groups.flatten(0, 1), **{key: mask.view(-1, mask.shape[-1]) for key, mask in grouped.items()}
            ),
            [queries, groups],
            lambda: pylate.colbert_scores(queries, groups, **grouped),
        ),
        (
            lambda: scores.colbert_kd_scores(queries, groups, **grouped),
            [queries, groups],
            lambda: pylate.colbert_kd_scores(queries, groups, **grouped),
        ),
        (lambda: scores.colbert_scores_pairwise(queries, documents), [queries, documents], None),
    ):
        with our_ops_run(expected=False):
            expected = gradients(score, leaves)
        with pylate.install(), our_ops_run():
            assert_all_close(gradients(score, leaves), expected)
        if ours is not None:
            with our_ops_run():
                assert_all_close(gradients(ours, leaves), expected)


def test_pylate_keeps_its_choice_of_backend(scores):
    queries, documents = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    lists = [[1.0]], [[2.0]]
    with pylate.install():
        with our_ops_run(expected=False):
            scores.colbert_scores(queries, documents, backend="torch")
        refused = "must have the same floating-point dtype and device"
        for wrong, reason in (((queries, documents.double()), refused), (lists, "must be tensors")):
            for score in (scores.colbert_scores, scores.colbert_kd_scores, scores.colbert_scores_pairwise):
                with pytest.raises(Exception, match=f"^queries and documents {reason}") as error:
                    score(*wrong, backend="lik")
                assert type(error.value).__name__ == "LIKUnsupported"
        with our_ops_run(expected=False):  # falls back
            scores.colbert_scores(queries.long(), documents.long())
        with pytest.raises(ValueError, match="documents_mask must be 0 or 1 everywhere: tokens cannot be weighted"):
            scores.colbert_scores(queries, documents, documents_mask=torch.full((2, 5), 0.5))
        assert scores._try_flash("flash") and not scores._try_flash("auto")


def test_colpali_scores_and_gradients(monkeypatch):
    stand_ins.installed(monkeypatch, colpali)
    backend = stand_ins.colpali(monkeypatch)
    query, documents, candidates = (embeddings(*shape, 16) for shape in ((3, 6), (5, 9), (3, 4, 9)))
    for name, theirs, side in (
        ("maxsim_inbatch_lik", stand_ins.maxsim, documents),
        ("maxsim_kd_lik", stand_ins.kd_maxsim, candidates),
    ):
        expected = gradients(lambda theirs=theirs, side=side: theirs(query, side), [query, side])
        with colpali.install(), our_ops_run():
            score = getattr(backend, name)
            assert_all_close(gradients(lambda score=score, side=side: score(query, side), [query, side]), expected)
            half = score(query.bfloat16(), side.bfloat16())
            assert half.dtype == torch.bfloat16
            torch.testing.assert_close(half.double(), expected[0], atol=0.1, rtol=0.05)
            with pytest.raises(backend.LIKUnsupportedError, match=r"dtype and device, got torch\.int64 on cpu and"):
                score(query.long(), side.long())
        assert getattr(backend, name) is not score


@pytest.fixture
def losses(monkeypatch):
    stand_ins.installed(monkeypatch, open_clip)
    open_clip._clip_loss.cache_clear()
    yield stand_ins.open_clip(monkeypatch)
    open_clip._clip_loss.cache_clear()


def pairs(count):
    rows = [F.normalize(torch.randn(count, 16, dtype=torch.float64), dim=-1).requires_grad_() for _ in range(2)]
    return [*rows, torch.tensor(14.3, dtype=torch.float64, requires_grad=True)]


def test_open_clip_loss_gradients_and_factory(losses):
    from open_clip import factory  # pyrefly: ignore[missing-import]

    inputs, bias = pairs(9), torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
    expected = gradients(lambda: factory.ClipLoss()(*inputs), inputs)
    with open_clip.install(), our_ops_run():
        assert factory.ClipLoss is open_clip.ClipLoss and issubclass(open_clip.ClipLoss, losses.ClipLoss)
        assert_all_close(gradients(lambda: factory.ClipLoss()(*inputs), inputs), expected)
    assert factory.ClipLoss is losses.ClipLoss
    value = open_clip.ClipLoss()(*inputs, bias, output_dict=True)
    assert value.keys() == {"contrastive_loss"}
    torch.testing.assert_close(value["contrastive_loss"], expected[0])
    assert torch.autograd.grad(value["contrastive_loss"], bias)[0] == 0  # DDP expects a gradient
    assert not hasattr(open_clip, "SigLipLoss")


@pytest.mark.parametrize("local_loss", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_open_clip_loss_of_two_ranks(losses, rank, local_loss):
    inputs, others = pairs(4), [row.detach() for row in pairs(4)[:2]]

    def gather_features(images, texts, **options):
        assert options == {"local_loss": local_loss, "gather_with_grad": True, "rank": rank, "world_size": 2} | {
            "use_horovod": False
        }
        return [torch.cat([mine, other][:: 1 - 2 * rank]) for mine, other in zip((images, texts), others, strict=True)]

    losses.gather_features = gather_features
    ours = open_clip.ClipLoss(local_loss=local_loss, gather_with_grad=True, rank=rank, world_size=2)

    def theirs():
        images, texts = (torch.cat([mine, other][:: 1 - 2 * rank]) for mine, other in zip(inputs, others, strict=False))
        rows = slice(4 * rank, 4 * rank + 4) if local_loss else slice(None)
        labels = torch.arange(8)[rows]
        both = inputs[2] * images[rows] @ texts.T, inputs[2] * texts[rows] @ images.T
        return sum(F.cross_entropy(logits, labels) for logits in both) / 2

    with our_ops_run():
        assert_all_close(gradients(lambda: ours(*inputs), inputs), gradients(theirs, inputs))


@pytest.mark.slow  # imports transformers
@pytest.mark.parametrize("pre_norm", [False, True])
def test_open_clip_towers_add_the_aligned_loss(losses, pre_norm):
    clap, special_ids, scale = ClapStandIn().eval(), [0, 1, 2], torch.tensor(7.0)
    clap.audio.pre_norm = pre_norm
    waveforms, input_ids = torch.randn(3, 100), torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1], [0, 8, 9, 2]])
    towers = Towers(clap, special_ids)(waveforms, input_ids)
    assert towers["token_mask"].sum(1).tolist() == [2, 1, 2]
    aligned = 0.5 * naive_info_nce(
        naive_similarity(towers["frames"], towers["tokens"], token_mask=towers["token_mask"]), scale
    ) / 2  # fmt: skip
    criterion = AlignedClipLoss(clap, special_ids, weight=0.5)
    vectors = [F.normalize(towers[side], dim=-1) for side in ("audio", "text")]
    with pytest.raises(RuntimeError, match="both towers of the CLAP must run before each call of the loss"):
        criterion(*vectors, scale)
    for output_dict in (True, False):
        clap.encode_audio({"waveform": waveforms}), clap.encode_text(input_ids)
        values = criterion(*vectors, scale, output_dict=output_dict)
        if output_dict:
            torch.testing.assert_close(values["aligned_loss"], aligned)
            expected = sum(values.values())
    torch.testing.assert_close(values, expected)
    clap.encode_audio({"waveform": waveforms[:2]}), clap.encode_text(input_ids[:2])
    with pytest.raises(RuntimeError, match="the frames of all 3 clips, but the latest batch has 2; set --accum-freq 1"):
        criterion(*vectors, scale)
