"""The loss that asks a middle layer whose face it will be."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("accelerate")

from fantasyid_core.training.who import Who


@pytest.fixture
def asked() -> SimpleNamespace:
    """Eight samples of two frames, 4 × 4 latents in 2 × 2 tokens; the face is in one column of tokens."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    basis = 0.01 * torch.randn(20, 3, 100, generator=generator)
    face = torch.zeros(8, 2, 4, 4)
    face[..., 2:] = 1
    return SimpleNamespace(
        who=Who(16, 3, basis),
        visual=torch.randn(8, 8, 16, generator=generator),
        face=face,
        shape=torch.randn(8, 100, generator=generator),
        look=torch.randn(8, 3, generator=generator),
    )


def loss(asked: SimpleNamespace, present: torch.Tensor | None = None, **changed: torch.Tensor) -> torch.Tensor:
    told = {name: changed.get(name, getattr(asked, name)) for name in ("visual", "face", "shape", "look")}
    return asked.who(**told, present=present)


def test_the_face_alone_is_asked(asked: SimpleNamespace):
    left = torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0])[:, None]  # tokens of the left column
    elsewhere = asked.visual + left * torch.randn(8, 8, 16)
    torch.testing.assert_close(loss(asked, visual=elsewhere), loss(asked))
    assert not torch.allclose(loss(asked, visual=asked.visual + (1 - left) * torch.randn(8, 8, 16)), loss(asked))


def test_tokens_that_know_the_person_are_understood(asked: SimpleNamespace):
    optimizer = torch.optim.AdamW(asked.who.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        losses.append(loss(asked))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]


def test_samples_without_an_identity_are_not_asked(asked: SimpleNamespace):
    present = torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 1])
    other = asked.look.clone()
    other[0] += 10
    torch.testing.assert_close(loss(asked, present, look=other), loss(asked, present))
    assert loss(asked, look=other) > loss(asked)
