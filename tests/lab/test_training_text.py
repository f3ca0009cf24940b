"""Attributes that captions state."""

import torch

from fantasyid_lab.people.clip import clip
from fantasyid_lab.people.person import TRAIN, person
from fantasyid_lab.training.text import ATTRIBUTES, Corpus, attribute_targets


def stated_attributes(caption_of: int, seed: int) -> tuple[str, dict[str, str | None]]:
    one = clip(person(caption_of), seed, 2)
    classes = dict(zip(ATTRIBUTES, attribute_targets(one), strict=True))
    return one.caption.lower(), {k: ATTRIBUTES[k][n - 1] if n else None for k, n in classes.items()}


def test_every_stated_attribute_stands_in_the_caption():
    for seed in range(60):
        text, stated = stated_attributes(seed, seed)
        for name in ("shirt", "background", "hair", "turn"):
            assert stated[name] is None or stated[name] in text, (name, text)
        if stated["sex"]:
            assert any(
                word in text for word in (("she", "her", "woman"), ("he ", "his", "man"))[stated["sex"] == "male"]
            )


def test_captions_leave_attributes_open():
    stated = [stated_attributes(seed, 3)[1] for seed in range(80)]
    for name in ATTRIBUTES:
        values = {each[name] for each in stated}
        assert None in values or name == "sex", name
        assert len(values) > 1, name


def test_the_longest_name_of_a_hair_colour_counts():
    pairs = [stated_attributes(seed, 1) for seed in range(200)]
    dark = [stated["hair"] for text, stated in pairs if "dark brown hair" in text]
    assert dark
    assert set(dark) == {"dark brown"}


def test_a_corpus_is_the_same_however_it_was_reached():
    at_once, in_parts = (Corpus(12, TRAIN, 7, torch.device("cpu")) for _ in range(2))
    at_once.draw_until(20)
    for count in (5, 12, 13, 20):
        in_parts.draw_until(count)
    assert torch.equal(at_once.ids, in_parts.ids)
    assert torch.equal(at_once.targets, in_parts.targets)
    assert at_once.filled == 12
