"""Who is most like a person, told by tokens of their aligned faces or by a face embedding."""

import pytest
import torch

from fantasyid_core.errors import FaceNotFoundError
from fantasyid_core.meters.embedding import Embedding
from fantasyid_core.meters.judge import (
    best_first,
    by_embedding,
    by_tokens,
    judge_foreseen,
    judge_video,
    token_similarity,
)

EYES = torch.tensor([[30.0, 40.0], [60.0, 40.0], [45.0, 55.0], [33.0, 70.0], [57.0, 70.0]])


def colours(crops: torch.Tensor) -> torch.Tensor:
    """Stands in for the identity encoder: two tokens, the mean colour of a crop's middle and its opposite."""
    mean = crops[:, 200:300, 200:300].mean((1, 2))
    return torch.stack([mean, 1 - mean], 1)


def _unit(chips: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(chips.mean((1, 2)), dim=1)


def painted(*shades: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(shades)[:, None, None].expand(-1, 96, 96, -1)


def test_tokens_are_compared_each_with_its_own_and_of_several_views_the_nearest_counts():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    assert token_similarity(tokens, torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist() == [1.0]
    assert token_similarity(tokens, torch.tensor([[0.0, 1.0], [0.0, 1.0]])).tolist() == [0.5]
    views = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert token_similarity(tokens, views).tolist() == [1.0]


def test_the_encoder_judges_the_frames_that_show_a_face():
    reference = colours(painted((0.8, 0.2, 0.2)).expand(1, 96, 96, 3).repeat_interleave(6, 1).repeat_interleave(6, 2))
    judge = by_tokens(colours, reference[0])
    landmarks = torch.stack([EYES, torch.full((5, 2), torch.nan), EYES])
    same, hidden, other = judge.compare(painted((0.8, 0.2, 0.2), (0.8, 0.2, 0.2), (0.2, 0.8, 0.2)), landmarks).tolist()
    assert same == pytest.approx(1.0, abs=1e-4)
    assert hidden != hidden
    assert other < 0.8


def test_a_video_without_a_face_has_no_score():
    judge = by_tokens(colours, torch.rand(2, 3))
    blank = painted(*[(0.5, 0.5, 0.5)] * 20)
    verdict = judge_video(judge, blank)
    assert verdict.similarity != verdict.similarity
    assert str(verdict) == "no clear face in any of 16 frames"
    assert judge_foreseen(judge, blank[:6].unflatten(0, (2, 3))).isnan().tolist() == [True, True]


def test_a_reference_without_a_face_is_refused():
    network = Embedding("dlib", 3, 8, tuple(map(tuple, (EYES / 12).tolist())), 0.9, _unit)
    with pytest.raises(FaceNotFoundError, match="reference shows no face"):
        by_embedding(network, painted((0.5, 0.5, 0.5))[0])
    judge = by_embedding(network, painted((1.0, 0.0, 0.0))[0], EYES)
    assert judge.compare(painted((1.0, 0.0, 0.0)), EYES[None]).tolist() == pytest.approx([1.0])


def test_videos_without_a_face_come_last():
    assert best_first(torch.tensor([0.5, torch.nan, 0.9, torch.nan, 0.9])) == [2, 4, 0, 1, 3]
