"""Autocast and grouped matrix products."""

import pytest
import torch

from moesaic.model import grouped


@pytest.fixture(autouse=True)
def _registered() -> None:
    grouped.register()


def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_SD = torch.randn(24, 16, generator=generator, requires_grad=True)
    weight_EDF = torch.randn(3, 16, 32, generator=generator, requires_grad=True)
    return x_SD, weight_EDF, torch.tensor([8, 8, 24], dtype=torch.int32)


def test_products_run_in_the_precision_of_autocast_and_gradients_in_the_weights() -> None:
    x_SD, weight_EDF, offs = operands()
    with torch.autocast("cpu", torch.bfloat16):
        out_SF = torch.nn.functional.grouped_mm(x_SD, weight_EDF, offs=offs)
        like_F = x_SD[0] @ weight_EDF[0]
    assert out_SF.dtype == like_F.dtype == torch.bfloat16
    torch.testing.assert_close(out_SF[0], like_F, rtol=0.02, atol=0.02)
    out_SF.float().square().sum().backward()
    assert x_SD.grad is not None
    assert weight_EDF.grad is not None
    assert x_SD.grad.dtype == weight_EDF.grad.dtype == torch.float32
    assert weight_EDF.grad[1].abs().max() == 0  # an expert without tokens
    exact = operands()
    torch.nn.functional.grouped_mm(exact[0], exact[1], offs=offs).square().sum().backward()
    assert exact[1].grad is not None
    error = (weight_EDF.grad - exact[1].grad).norm() / exact[1].grad.norm()
    assert 1e-5 < error < 1e-2


def test_nothing_changes_without_autocast_or_when_it_is_off() -> None:
    x_SD, weight_EDF, offs = operands()
    plain = torch.nn.functional.grouped_mm(x_SD, weight_EDF, offs=offs)
    assert plain.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), grouped.off():
        assert torch.equal(torch.nn.functional.grouped_mm(x_SD, weight_EDF, offs=offs), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.nn.functional.grouped_mm(x_SD, weight_EDF, offs=offs).dtype == torch.bfloat16
