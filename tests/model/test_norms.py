"""RMSNorm with a gradient of its own."""

import copy

import pytest
import torch
from tiny import tiny_llama
from torch import nn

from moesaic.model import norms


class StockRMSNorm(nn.Module):
    """As transformers write it."""

    def __init__(self, width: int, plus: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, generator=torch.Generator().manual_seed(1)))
        self.variance_epsilon, self.plus = 1e-5, plus

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = x.float()
        high = high * torch.rsqrt(high.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight + self.plus) * high.to(x.dtype)


def reference(x: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight_D


@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12), (2, 3, 4, 12), (0, 12)])
def test_output_and_gradients_are_those_of_the_formula(shape):
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=stream, dtype=torch.float64, requires_grad=True)
    weight_D = torch.randn(12, generator=stream, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, generator=stream, dtype=torch.float64)
    found = torch.autograd.grad(norms.rms_norm(x, weight_D, 1e-5), (x, weight_D), grad)
    wanted = torch.autograd.grad(reference(x, weight_D), (x, weight_D), grad)
    torch.testing.assert_close(
        norms.rms_norm(x, weight_D, 1e-5), reference(x, weight_D), rtol=1e-12, atol=1e-12
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_strides_and_frozen_weights_and_inputs():
    x_NHD = torch.randn(6, 3, 12, dtype=torch.float64).transpose(0, 1).requires_grad_()
    weight_D = torch.randn(12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: norms.rms_norm(x, w, 1e-5), (x_NHD, weight_D))
    assert torch.autograd.gradcheck(lambda x: norms.rms_norm(x, weight_D.detach(), 1e-5), (x_NHD,))
    assert torch.autograd.gradcheck(lambda w: norms.rms_norm(x_NHD.detach(), w, 1e-5), (weight_D,))


def test_every_familys_norms_take_it_and_the_model_stays_the_same(model):
    ids_BT = torch.randint(0, model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))

    def results(of):
        logits = of(input_ids=ids_BT).logits
        logits.float().square().mean().backward()
        return logits.detach(), {n: p.grad for n, p in of.named_parameters() if p.grad is not None}

    model.train()
    stock = copy.deepcopy(model)
    count = sum(type(module).__name__.endswith("RMSNorm") for module in model.modules())
    assert norms.apply(model) == count >= 2 * model.config.num_hidden_layers + 1
    assert norms.apply(model) == 0
    assert model.state_dict().keys() == stock.state_dict().keys()
    logits, grads = results(model)
    wanted_logits, wanted = results(stock)
    torch.testing.assert_close(logits, wanted_logits, rtol=1e-5, atol=1e-5)
    assert grads.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-6, msg=name)
    # a copy has its own weights
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight.zero_()
        assert other(input_ids=ids_BT).logits.abs().max() == 0
        torch.testing.assert_close(model(input_ids=ids_BT).logits, logits)


def test_less_is_kept():
    def kept(of):
        places = {}

        def pack(tensor):
            places[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x_NDs = torch.randn(64, 32, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            alive = of(x_NDs)
        assert alive.requires_grad
        return sum(places.values())

    module = StockRMSNorm(32)
    before = kept(module)
    assert norms.apply(module) == 1
    # input, weight, one number a row
    assert kept(module) == 64 * 32 * 4 + 32 * 4 + 64 * 4 < 0.6 * before


def test_others_are_left_alone():
    assert norms.apply(StockRMSNorm(32, plus=1.0)) == 0  # as Gemma's
    assert norms.apply(StockRMSNorm(32).to("meta")) == 0
    assert norms.apply(StockRMSNorm(32).bfloat16()) == 0
    assert norms.apply(nn.LayerNorm(32)) == 0


def test_in_lower_precision_the_module_computes_its_own():
    module = StockRMSNorm(32)
    stock = copy.deepcopy(module)
    assert norms.apply(module) == 1
    x_ND = torch.randn(4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x_ND), stock(x_ND))
    assert torch.equal(module.bfloat16()(x_ND.bfloat16()), stock.bfloat16()(x_ND.bfloat16()))


def test_the_random_stream_is_not_touched():
    model = tiny_llama()
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    norms.apply(model)
    assert torch.equal(torch.rand(3), wanted)
