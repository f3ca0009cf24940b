"""The loss that asks a middle layer where the face is, and the optimisers that parameters go to."""

from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")

from fantasyid_lab.training.landmark_loss import LandmarkLoss, landmark_heatmaps
from fantasyid_lab.training.muon import Muon
from fantasyid_lab.training.optimizers import optimizers
from fantasyid_lab.training.options import BaseOptions
from fantasyid_lab.training.settings import Settings


def test_a_landmark_lies_in_the_cell_around_it():
    landmarks = torch.tensor([[[[2.1, 3.9], [0.0, 0.0]]]])
    cells = landmark_heatmaps(landmarks, 5, 4)
    assert cells.shape == (1, 1, 20, 2)
    torch.testing.assert_close(cells.sum(2), torch.ones(1, 1, 2))
    assert cells[0, 0, :, 0].argmax() == 4 * 4 + 2  # row 4, column 2
    assert cells[0, 0, :, 1].argmax() == 0


def test_tokens_that_show_where_the_landmarks_are_are_understood():
    torch.manual_seed(0)
    landmark_loss, mark = LandmarkLoss(16, landmarks=1), torch.randn(16)
    optimizer = torch.optim.AdamW(landmark_loss.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        where = torch.randint(0, 4, (8, 1, 1, 2)).float()
        visual = torch.zeros(8, 16, 16)
        visual[torch.arange(8), (where[:, 0, 0, 1] * 4 + where[:, 0, 0, 0]).long()] = mark
        loss = landmark_loss(visual, where, (1, 4, 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2.5  # ln 16 is 2.77: nothing is known
    assert losses[-1] < 2.1  # all that a mark in the middle cell tells of a blurred place


def network() -> tuple[nn.Module, nn.Linear]:
    hidden = nn.Linear(64, 64)
    return nn.ModuleDict({"embed": nn.Embedding(8, 64), "hidden": hidden, "out": nn.Linear(64, 8)}), hidden


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    whole, hidden = network()
    adamw, muon = optimizers(
        whole.parameters(), hidden.parameters(), replace(Settings("base", BaseOptions()), muon=True)
    )
    assert [p.shape for g in muon.param_groups for p in g["params"]] == [hidden.weight.shape]
    assert sum(len(g["params"]) for g in adamw.param_groups) == len(list(whole.parameters())) - 1


def test_adamw_takes_everything_where_muon_is_not_wanted():
    whole, hidden = network()
    (adamw,) = optimizers(whole.parameters(), hidden.parameters(), replace(Settings("base", BaseOptions()), muon=False))
    assert sum(len(g["params"]) for g in adamw.param_groups) == len(list(whole.parameters()))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon before 2.9")
def test_muon_steps_as_torch_s_own():
    generator = torch.Generator().manual_seed(0)
    shapes = [(48, 32), (32, 48), (40, 40), (48, 32), (48, 32), (40, 40)]
    first = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, torchs = ([nn.Parameter(x.clone()) for x in first] for _ in range(2))
    options = {"lr": 0.02, "weight_decay": 0.1}

    def optimizer() -> Muon:
        return Muon(ours, **options)

    mine, wanted = optimizer(), torch.optim.Muon(torchs, **options, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for i, (a, b) in enumerate(zip(ours, torchs, strict=True)):
            idle = i == 3 and step < 2  # gets its first gradient late
            a.grad = b.grad = None if idle else torch.randn(shapes[i], generator=generator)
        mine.step()
        wanted.step()
        state = mine.state_dict()
        mine = optimizer()  # as a resumed run does
        mine.load_state_dict(state)
        for a, b, before in zip(ours, torchs, first, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * (b - before).abs().max().item())
    assert (ours[3] - first[3]).abs().max() > 0.01
