"""transformers: `AlignedClap` against its equation, in a plain loop, with Accelerate, and in `Trainer`."""

import copy

import numpy as np
import pytest
import torch
from support.example_cases import naive_total
from support.integrations import assert_all_close, library, our_ops_run

from atk.integrations.transformers import AlignedClap, ClapCollator
from atk.nn import AlignedContrastiveLoss

CAPTIONS = ["a dog barks", "rain falls on a tin roof", "a bell rings twice", "wind"]


@pytest.fixture(scope="module")
def transformers():
    return library("transformers")


@pytest.fixture(scope="module")
def processor(transformers):
    from atk.models.text import train_tokenizer

    class Processor:
        feature_extractor = transformers.ClapFeatureExtractor(truncation="rand_trunc")
        tokenizer = train_tokenizer(CAPTIONS, 300)

    return Processor()


@pytest.fixture(scope="module")
def model(transformers, processor):
    """A ClapModel with few layers and large patches, without dropout."""
    audio = {
        "patch_size": 16, "patch_stride": [16, 16], "patch_embeds_hidden_size": 16, "hidden_size": 32, "window_size": 4,
        "depths": [1, 1], "num_attention_heads": [2, 2], "num_hidden_layers": 2, "drop_path_rate": 0.0,
    }  # fmt: skip
    text = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "vocab_size": len(processor.tokenizer), "pad_token_id": processor.tokenizer.pad_token_id,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
    return AlignedClap(transformers.ClapModel(config)).eval()  # eval: batch normalization keeps its statistics


@pytest.fixture(scope="module")
def rows():
    draw = np.random.default_rng(0)
    seconds = (1.0, 10.0, 4.0, 12.0)
    clips = [draw.standard_normal(int(48000 * length)).astype(np.float32) * 0.1 for length in seconds]
    return [{"audio": clip, "caption": caption} for clip, caption in zip(clips, CAPTIONS, strict=True)]


@pytest.fixture(scope="module")
def batch(processor, rows):
    return ClapCollator(processor)(rows)


def gradients_of(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def stepped(model, *losses):
    """Gradients, and the weights after one step of SGD on the mean of the losses of a copy of the model."""
    copied = copy.deepcopy(model)
    sum(loss(copied) for loss in losses).div(len(losses)).backward()
    torch.optim.SGD(copied.parameters(), 0.1).step()
    return gradients_of(copied), copied.state_dict()


def test_loss_and_gradients_are_those_of_the_equation(model, batch):
    def naive(copied):
        values = copied.embed(**batch)
        return naive_total(values, copied.criterion.logit_scale)

    with our_ops_run(expected=False):
        expected, weights = stepped(model, naive)
    with our_ops_run():
        ours, our_weights = stepped(model, lambda copied: copied(**batch)["loss"])
    assert ours.keys() == expected.keys() and "criterion.log_logit_scale" in ours
    scale = max(value.abs().max() for value in expected.values())
    assert_all_close(list(ours.values()), list(expected.values()), atol=1e-5 * scale, rtol=1e-4)
    assert_all_close(list(our_weights.values()), list(weights.values()), atol=1e-6 * scale, rtol=1e-4)
    unused = {name for name, weight in model.named_parameters() if weight.requires_grad} - expected.keys()
    assert not unused, "DDP would wait for them"


def test_embeddings_are_those_of_the_clap_model(model, batch):
    names = ("input_ids", "attention_mask", "input_features", "is_longer")
    expected = model.clap(**{name: batch[name] for name in names})
    outputs = model(**batch, return_loss=False)
    assert "loss" not in outputs
    torch.testing.assert_close(outputs["audio_embeds"], expected.audio_embeds)
    torch.testing.assert_close(outputs["text_embeds"], expected.text_embeds)


def test_masks(model, batch, processor):
    values = model.embed(**batch)
    frames = values["frames"].shape[1]
    assert values["frame_mask"].sum(1).tolist() == [max(1, frames // 10), frames, 4 * frames // 10, frames]
    special = torch.isin(batch["input_ids"], torch.tensor(processor.tokenizer.all_special_ids))
    assert torch.equal(values["token_mask"], ~special)
    del batch["special_tokens_mask"]
    text = model.config.text_config
    special = torch.isin(batch["input_ids"], torch.tensor([text.pad_token_id, text.bos_token_id, text.eos_token_id]))
    assert torch.equal(model.embed(**batch)["token_mask"], ~special & batch["attention_mask"].bool())


def test_the_temperature_starts_at_that_of_the_checkpoint_and_is_saved(model, tmp_path, transformers):
    assert model.criterion.logit_scale.item() == pytest.approx(model.clap.logit_scale_a.exp().item())
    tuned = AlignedClap(copy.deepcopy(model.clap), AlignedContrastiveLoss(0.02))
    tuned.save_pretrained(tmp_path)
    saved = transformers.ClapModel.from_pretrained(tmp_path)
    assert saved.logit_scale_a.exp().item() == saved.logit_scale_t.exp().item() == pytest.approx(50)
    torch.testing.assert_close(saved.text_projection.linear1.weight, model.clap.text_projection.linear1.weight)


def test_rows_that_do_not_fit_are_refused(processor, rows):
    collate = ClapCollator(processor)
    wrong = {"array": rows[0]["audio"], "sampling_rate": 16000}
    with pytest.raises(ValueError, match="audio must be sampled at 48000 Hz, got 16000 Hz"):
        collate([{**rows[0], "audio": wrong}])
    with pytest.raises(ValueError, match=r"audio must be mono, of shape \[S\], got \[2, 10\]"):
        collate([{**rows[0], "audio": np.zeros((2, 10))}])
    collate([{**rows[0], "audio": {**wrong, "sampling_rate": 48000}}])


def test_accelerate_takes_the_same_step(model, batch):
    accelerate = pytest.importorskip("accelerate")
    _, expected = stepped(model, lambda copied: copied(**batch)["loss"])
    accelerator = accelerate.Accelerator(cpu=True)
    copied = copy.deepcopy(model)
    prepared, optimizer = accelerator.prepare(copied, torch.optim.SGD(copied.parameters(), 0.1))
    accelerator.backward(prepared(**batch)["loss"])
    optimizer.step()
    assert_all_close(list(copied.state_dict().values()), list(expected.values()))


@pytest.fixture
def trainer(transformers, model, processor, rows, tmp_path):
    pytest.importorskip("accelerate")
    from atk.integrations.transformers import AlignedTrainer

    def create(**options):
        defaults = {"remove_unused_columns": False, "prediction_loss_only": True, "use_cpu": True, "report_to": []}
        defaults |= {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
        defaults |= {"max_grad_norm": 0.0, "save_strategy": "no", "seed": 0, "disable_tqdm": True}
        args = transformers.TrainingArguments(str(tmp_path / "out"), **defaults | options)
        in_order = type("InOrder", (AlignedTrainer,), {"_get_train_sampler": lambda *_: None})
        copied = copy.deepcopy(model)
        copied.train = lambda mode=True: copied  # batch normalization keeps its statistics
        return in_order(copied, args, train_dataset=rows, eval_dataset=rows, data_collator=ClapCollator(processor))

    return create


def test_trainer_averages_accumulated_batches(trainer, model, processor, rows):
    collate = ClapCollator(processor)
    np.random.seed(0)  # the feature extractor crops long clips at random
    halves = [collate(rows[:2]), collate(rows[2:])]
    _, expected = stepped(model, *(lambda copied, half=half: copied(**half)["loss"] for half in halves))
    running = trainer(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    np.random.seed(0)
    running.train()
    assert_all_close(list(running.model.state_dict().values()), list(expected.values()), atol=1e-4, rtol=1e-3)


def test_trainer_in_bf16_returns_the_loss_in_float32(trainer, model, batch):
    running = trainer(per_device_train_batch_size=4, bf16=True)
    losses = []
    original = running.compute_loss
    running.compute_loss = lambda *args, **options: losses.append(original(*args, **options)) or losses[-1]
    with our_ops_run():
        running.train()
    assert losses[0].dtype == torch.float32
    assert losses[0].item() == pytest.approx(model(**batch)["loss"].item(), rel=0.05)


def test_trainer_evaluates_the_loss_and_saves_weights(trainer, model, batch, tmp_path):
    running = trainer(per_device_eval_batch_size=4)
    np.random.seed(0)
    assert running.evaluate()["eval_loss"] > 0
    running.save_model(str(tmp_path / "saved"))
    from safetensors.torch import load_file

    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["remove_unused_columns", "prediction_loss_only"])
def test_trainer_refuses_settings_that_break_contrastive_learning(trainer, name):
    wrong = name == "remove_unused_columns"
    with pytest.raises(ValueError, match=f"args.{name} must be {not wrong} for AlignedTrainer, got {wrong}"):
        trainer(**{name: wrong})
