"""What captions are asked, and what they answer."""

import torch

from fantasyid_lab.people.clip import clip
from fantasyid_lab.people.person import TRAIN, person
from fantasyid_lab.training.text import QUESTIONS, Corpus, answers


def said(caption_of: int, seed: int) -> tuple[str, dict[str, str | None]]:
    made = clip(person(caption_of), seed, 2)
    numbers = dict(zip(QUESTIONS, answers(made), strict=True))
    return made.caption.lower(), {k: QUESTIONS[k][n - 1] if n else None for k, n in numbers.items()}


def test_every_answer_stands_in_the_caption():
    for seed in range(60):
        text, told = said(seed, seed)
        for name in ("shirt", "background", "hair", "turn"):
            assert told[name] is None or told[name] in text, (name, text)
        if told["sex"]:
            assert any(word in text for word in (("she", "her", "woman"), ("he ", "his", "man"))[told["sex"] == "male"])


def test_captions_leave_things_out_and_then_nothing_is_answered():
    told = [said(seed, 3)[1] for seed in range(80)]
    for name in QUESTIONS:
        values = {each[name] for each in told}
        assert None in values or name == "sex", name
        assert len(values) > 1, name


def test_the_longest_name_of_a_hair_colour_counts():
    pairs = [said(seed, 1) for seed in range(200)]
    dark = [told["hair"] for text, told in pairs if "dark brown hair" in text]
    assert dark
    assert set(dark) == {"dark brown"}


def test_a_corpus_is_the_same_however_it_was_reached():
    at_once, in_parts = (Corpus(12, TRAIN, 7, torch.device("cpu")) for _ in range(2))
    at_once.reach(20)
    for count in (5, 12, 13, 20):
        in_parts.reach(count)
    assert torch.equal(at_once.ids, in_parts.ids)
    assert torch.equal(at_once.answers, in_parts.answers)
    assert at_once.filled == 12
