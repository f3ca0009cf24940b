"""What help pages show: the example people, and what FantasyID-nano makes of them."""

from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from fantasyid_core.detection.face_track import FaceTrack, follow
from fantasyid_core.detection.faces import DetectedFace
from fantasyid_core.detection.selection import find_face
from fantasyid_core.images import from_pil, load_photo
from fantasyid_core.meters.judge import best_first, by_tokens, judge_foreseen
from fantasyid_core.reconstruction import deca_input, face_mesh, performance
from fantasyid_core.reconstruction.animation import Animation
from fantasyid_core.reconstruction.face_mesh import FaceMesh
from fantasyid_core.reconstruction.performance import Performance
from fantasyid_core.sampling.takes import glimpse, steps_until_judged
from fantasyid_core.video.face_clip import FaceClip, cut_out
from fantasyid_lab import nano
from fantasyid_lab.evaluation.generate import Generator, Request
from fantasyid_lab.evaluation.modes import EXACT, Mode

from .draw_example_photos import PHOTOS
from .draw_thumbnails import frames


class Studio:
    """The example people and what FantasyID-nano makes of them, each computed once."""

    def __init__(self):
        self._faces: dict[str, DetectedFace] = {}
        self._meshes: dict[str, FaceMesh] = {}
        self._videos: dict[tuple, Tensor] = {}

    @cached_property
    def generator(self) -> Generator:
        """FantasyID-nano."""
        return Generator(nano.read(nano.SHIPPED))

    def photo(self, person: str) -> Image.Image:
        """An example person's photo."""
        return Image.open(PHOTOS / f"{person}.jpg")

    def face(self, person: str) -> DetectedFace:
        """The face in it."""
        if person not in self._faces:
            self._faces[person] = find_face(load_photo(PHOTOS / f"{person}.jpg")).face
        return self._faces[person]

    def mesh(self, person: str) -> FaceMesh:
        """The face's mesh."""
        if person not in self._meshes:
            model = self.generator.model
            self._meshes[person] = face_mesh.reconstruct(
                self.face(person), model.regressor, model.face, face_mesh.SHAPE_ONLY, deca_input.FACE_CROP
            )
        return self._meshes[person]

    @cached_property
    def captured(self) -> tuple[Tensor, FaceTrack, Performance]:
        """Frames of an example person's video, the points in them, and the performance."""
        video = torch.stack([from_pil(frame) for frame in frames("Chiyo", 25)])
        track = follow(video, 8.0)
        return video, track, performance.capture(self.generator.model.face, track)

    @cached_property
    def wide(self) -> tuple[Tensor, FaceClip]:
        """A video of two people beside each other, and the clip of the right one's face."""
        left, right = (torch.stack([from_pil(frame) for frame in frames(name, 25)]) for name in ("Ben", "Chiyo"))
        wide = torch.cat([left, right], 2)
        points = follow(right, 8.0)
        beside = FaceTrack(points.points + torch.tensor([left.shape[2], 0, 0]), points.confidence, points.present, 8.0)
        return wide, cut_out(wide, beside, nano.HEIGHT, nano.WIDTH)

    def repaired(self, person: str, denoising_strength: float) -> Tensor:
        """(25, 160, 160, 3) float 0…1, the clip of `wide` drawn again as an example person."""
        identity = self.generator.identity(self.face(person))
        request = Request("A person turns the head before a wall.", identity, seed=0)
        start = self.generator.encode(self.wide[1].frames[None])
        made = self.generator.videos(
            [request], steps=20, guidance=4.0, guide_identity=True, start=start, denoising_strength=denoising_strength
        )
        return made[0].float() / 255

    def takes(self, person: str, prompt: str, count: int = 3) -> tuple[Tensor, list[float], Tensor]:
        """Of several takes what is foreseen at 0.3 of the steps (N, n, 160, 160, 3) and how like the person it is; and
        the most like one (25, 160, 160, 3), all float 0…1.
        """
        identity, foreseen = self.generator.identity(self.face(person)), {}
        made = self.generator.latents(
            [Request(prompt, identity, seed) for seed in range(42, 42 + count)],
            *(nano.FRAMES, 20, 4.0, "ddim", (nano.HEIGHT, nano.WIDTH)),
            guide_identity=True,
            callback=lambda step, _, clean: foreseen.update({step + 1: clean}),
        )
        parts = glimpse(foreseen[steps_until_judged(20, 0.3)].transpose(1, 2)).transpose(1, 2)
        seen = self.generator.decode(parts)[:, 0].unflatten(0, (count, -1)).float() / 255
        judge = by_tokens(self.generator.model.encoder.face_tokens, identity.face_tokens)
        scores = judge_foreseen(judge, seen)
        best = best_first(scores)[0]
        return seen, scores.tolist(), self.generator.decode(made[best : best + 1])[0].float() / 255

    def performed(self, person: str, captured: Performance) -> Animation:
        """An example person's mesh that does what was captured."""
        return performance.perform(self.generator.model.face, self.mesh(person), captured)

    def video(self, person: str, prompt: str, strength: float = 1.0, mode: Mode = EXACT) -> Tensor:
        """(25, 160, 160, 3) float 0…1."""
        key = (person, prompt, strength, mode)
        if key not in self._videos:
            request = Request(prompt, self.generator.identity(self.face(person)), seed=42, strength=strength)
            made = self.generator.videos([request], steps=20, guidance=4.0, guide_identity=True, mode=mode)
            self._videos[key] = made[0].float() / 255
        return self._videos[key]
