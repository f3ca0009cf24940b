"""Captions of clips: what happens, what is worn, what is behind, in many phrasings, sometimes leaving things out."""

from typing import TYPE_CHECKING

import numpy as np

from .motion import ClipLabels
from .scene import Scene

if TYPE_CHECKING:
    from .person import Person

KEPT = 0.88
"""Chance that a fact is stated at all."""
MAX_EVENTS = 3  # more would be cut off by the text encoder; blinks are the first to go
MAX_BYTES = 225  # what the text encoder of FantasyID-nano takes
_TURN = (
    "turns {her} head to the {side}",
    "turns to the {side}",
    "looks over to the {side}, turning {her} head",
    "slowly turns {her} face {side}",
    "rotates {her} head towards the {side} of the picture",
)
_TILT = ("tilts {her} head to the {side}", "leans {her} head {side}", "cocks {her} head to the {side}")
_GAZE = ("glances {side}", "moves {her} eyes {side}", "looks {side} with {her} eyes")
_SMILE = ("smiles", "breaks into a smile", "starts to smile", "gives a warm smile", "smiles broadly")
_TALK = ("talks", "speaks", "is talking", "says something", "speaks to the camera")
_BLINK = ("blinks", "blinks {her} eyes", "closes {her} eyes for a moment")
_NOD = ("nods", "nods {her} head", "gives a nod", "nods in agreement")
_BROWS = ("raises {her} eyebrows", "lifts {her} brows", "raises {her} brows in surprise")
_STILL = ("looks at the camera", "keeps still", "faces the camera calmly", "holds still and looks ahead")
_SHIRT = ("in {a} shirt", "wearing {a} shirt", "in {a} top", "dressed in {c}", "with {a} T-shirt")
_BEHIND = (
    "in front of {a} background",
    "before {a} wall",
    "against {a} backdrop",
    "with {a} background",
    "in a room with {c} walls",
)
_FRAMES = (
    "{s}.",
    "{s}.",
    "{s}.",
    "A video of {s}.",
    "A portrait: {s}.",
    "Close-up of {s}.",
    "{s}, head and shoulders.",
)


def caption(
    rng: np.random.Generator, person: "Person", scene: Scene, labels: ClipLabels, tells_motion: bool = True
) -> str:
    """One sentence or two, true of the clip; without `tells_motion` nothing of what happens in it."""
    pick = _Picker(rng)
    female = person.sex == "female"
    her = "her" if female else "his"
    phrases_used = []
    for fact, phrases in (
        (labels.turn, _TURN),
        (labels.tilt, _TILT),
        (labels.nod, _NOD),
        (labels.smile, _SMILE),
        (labels.talk, _TALK),
        (labels.brows, _BROWS),
        (labels.gaze, _GAZE),
        (labels.blink, _BLINK),
    ):
        if tells_motion and fact and rng.random() < (KEPT if phrases is not _BLINK else 0.6):
            phrases_used.append(pick(phrases).format(her=her, side=fact))
    if not phrases_used:
        quiet = tells_motion and not (labels.turn or labels.tilt or labels.nod or labels.gaze)
        phrases_used = [pick(_STILL)] if quiet else []
    who = _who(pick, person, scene, female)
    worn = pick(_SHIRT).format(c=labels.shirt, a=_a(labels.shirt)) if rng.random() < KEPT else ""
    behind = pick(_BEHIND).format(c=labels.background, a=_a(labels.background)) if rng.random() < KEPT else ""
    does = _enumerate(phrases_used[:MAX_EVENTS])
    text = _sentences(rng, pick, who, worn, behind, does, "She" if female else "He")
    if len(text.encode()) > MAX_BYTES:
        text = text.replace(does, _enumerate(phrases_used[: MAX_EVENTS - 1]))
    return text


def _sentences(
    rng: np.random.Generator, pick: "_Picker", who: str, worn: str, behind: str, does: str, pronoun: str
) -> str:
    kind = rng.integers(3) if does else 3
    if kind == 0:  # all in one sentence
        return _finish(pick, _join(who, worn, does, behind))
    if kind == 1:  # the setting first
        return _finish(pick, _join(who, worn, behind)) + f" {pronoun} {does}."
    if kind == 2 and behind:
        return f"{behind[0].upper()}{behind[1:]}, {_join(who, worn, does)}."
    return _finish(pick, _join(who, worn, does, behind))


def stated_labels(text: str, labels: ClipLabels) -> set[str]:
    """Which of a clip's labels (their names) its caption says: a caption may leave any of them out."""
    text = text.lower()
    facts = {
        "turn": (labels.turn, _TURN),
        "tilt": (labels.tilt, _TILT),
        "gaze": (labels.gaze, _GAZE),
        "smile": (labels.smile, _SMILE),
        "talk": (labels.talk, _TALK),
        "blink": (labels.blink, _BLINK),
        "nod": (labels.nod, _NOD),
        "brows": (labels.brows, _BROWS),
        "shirt": (labels.shirt, _SHIRT),
        "background": (labels.background, _BEHIND),
    }
    return {
        name
        for name, (fact, phrases) in facts.items()
        for phrase in phrases
        for her in ("her", "his")
        if fact and phrase.format(her=her, side=fact, c=fact, a=_a(str(fact))) in text
    }


class _Picker:
    def __init__(self, rng: np.random.Generator):
        self._rng = rng

    def __call__(self, options: tuple[str, ...]) -> str:
        return options[self._rng.integers(len(options))]


def _who(pick: _Picker, person: "Person", scene: Scene, female: bool) -> str:
    noun = "woman" if female else "man"
    if person.age < 32:
        age = pick(("young ", "young ", ""))
    elif person.age > 58:
        age = pick(("old ", "elderly ", "older ", ""))
    else:
        age = pick(("", "", "middle-aged "))
    hair = scene.hair
    length = {"bob": "chin-length ", "long": "long ", "curly": "curly ", "short": "short ", "buzzed": "short "}
    if hair.style == "bald":
        hair_phrase = pick((" with a bald head", "", ""))
    else:
        hair_phrase = pick((f" with {length.get(hair.style, '')}{hair.name} hair", f" with {hair.name} hair", "", ""))
    noun = pick((noun, noun, noun, "person"))
    article = "an" if (age or noun)[0] in "aeiou" else "a"
    return f"{article} {age}{noun}{hair_phrase}"


def _enumerate(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _finish(pick: _Picker, sentence: str) -> str:
    text = pick(_FRAMES).format(s=sentence)
    return text[0].upper() + text[1:]


def _a(colour: str) -> str:
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour}"
