"""Audio-to-text mappers: equations, noise in training only, padding, gradients, and errors."""

import pytest
import torch

import atk


def test_mlp_mapper_is_equation_5_11():
    mapper = atk.nn.MLPMapper(6, 10, hidden=12).eval()
    first, last = mapper.layers[0], mapper.layers[-1]
    z = torch.randn(3, 6)
    wanted = torch.relu(z @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(mapper(z), wanted[:, None])
    assert mapper(z).shape == (3, 1, 10) and mapper.tokens == 1


@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_transformer_mapper_returns_the_requested_number_of_tokens(tokens):
    mapper = atk.nn.TransformerMapper(6, 16, tokens=tokens).eval()
    assert mapper(torch.randn(3, 5, 6)).shape == (3, tokens, 16) and mapper.tokens == tokens
    layer = mapper.decoder.layers[0]
    assert len(mapper.decoder.layers) == 2 and layer.self_attn.num_heads == 8 and layer.linear1.out_features == 64


def test_transformer_mapper_ignores_padding_and_depends_on_the_order_of_frames():
    mapper = atk.nn.TransformerMapper(6, 16).eval()
    frames, mask = torch.randn(2, 5, 6), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    out = mapper(frames, mask)
    torch.testing.assert_close(out[:1], mapper(frames[:1, :3]))
    assert not torch.allclose(mapper(frames.flip(1))[1], out[1])


@pytest.mark.parametrize("mapper_type", ["mlp", "transformer"])
def test_noise_has_the_given_scale_in_training_only(mapper_type):
    def make(noise):
        torch.manual_seed(0)
        if mapper_type == "mlp":
            return atk.nn.MLPMapper(4, 8, dropout=0.0, noise=noise), torch.zeros(1000, 4)
        return atk.nn.TransformerMapper(4, 8, dropout=0.0, noise=noise), torch.zeros(1000, 3, 4)

    def perturbed(noise):
        mapper, z = make(noise)
        first = mapper.layers[0] if mapper_type == "mlp" else mapper.project
        layer_inputs = []
        first.register_forward_hook(lambda module, inputs, output: layer_inputs.append(inputs[0]))
        mapper(z)
        mapper.eval()
        mapper(z)
        return layer_inputs

    training, evaluation = perturbed(2.0)
    assert training.std().item() == pytest.approx(2.0, rel=0.05) and training.mean().abs() < 0.15
    assert not evaluation.any()
    assert not any(value.any() for value in perturbed(0.0))


@pytest.mark.parametrize("mapper_type", ["mlp", "transformer"])
def test_gradients_reach_audio_and_every_weight(mapper_type):
    mapper = atk.nn.MLPMapper(6, 16) if mapper_type == "mlp" else atk.nn.TransformerMapper(6, 16)
    z = torch.randn(4, 6, requires_grad=True) if mapper_type == "mlp" else torch.randn(4, 5, 6, requires_grad=True)
    mapper(z).square().sum().backward()
    assert z.grad.abs().sum() > 0
    for name, weight in mapper.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: atk.nn.MLPMapper(4, 8, noise=-1.0), "noise must be at least 0, got -1.0"),
        (lambda: atk.nn.TransformerMapper(4, 8, tokens=0), "tokens must be at least 1, got 0"),
        (lambda: atk.nn.TransformerMapper(4, 9), "num_heads must"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
