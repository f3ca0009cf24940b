"""Face embeddings that judge who is in a picture. They took no part in training: aligned chips → unit vectors.

dlib's network (CC0) is the default; ArcFace serves where the artist has InsightFace's licensed model file. Neither
package is needed to import this module.
"""

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..detection import yunet
from ..detection.alignment import FFHQ_TEMPLATE, similarity
from ..detection.detections import Detections
from ..detection.multiscale import search
from ..errors import WeightsError, WeightsMissingError, cause
from ..images import as_photo
from ..io.formats import refuse_foreign
from ..io.listing import files_in
from ..optional_import import require
from ..views.appearance import Recogniser

DLIB, ARCFACE = EMBEDDINGS = ("dlib", "ArcFace")
DISTANCE, COSINE = "distance", "cosine"
DLIB_FILE = "dlib_face_recognition_resnet_model_v1.dat"
ARCFACE_FILES = ("glintr100.onnx", "w600k_r50.onnx", "w600k_mbf.onnx")

# Measured by tools/measure/likeness.py, see docs/likeness.md.
DLIB_ON_PHOTOS = (
    "On 69 real photos of 15 people that missed none of 285 pairs of one person and took 0.2 % of 2,061 pairs of two "
    "for one; people who look alike and generated faces pass more often: a hint, no proof."
)
ARCFACE_ON_PHOTOS = "How often it errs was not measured here."

# The person's right eye, left eye, nose tip, right and left mouth corner in a chip. dlib's: its mean face of 68
# landmarks (`dlib/image_transforms/interpolation.h`), eyes averaged, a quarter of padding around it.
_DLIB_MEAN = ((0.22552, 0.21602), (0.75473, 0.21602), (0.49013, 0.51563), (0.25415, 0.78023), (0.72610, 0.78023))
_DLIB_SIZE, _DLIB_PADDING = 150, 0.25
_ARCFACE_SIZE = 112
_ARCFACE_TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))


@dataclass(frozen=True, eq=False)
class Embedding:
    """A network that tells faces apart.

    Attributes:
        name: as in `EMBEDDINGS`.
        width: D, of its vectors.
        size: side of its chips, px.
        template: five landmarks in a chip, px, in the detector's order.
        same_person: similarity (cosine) above which its authors take two faces for one person.
        vectors: chips (N, size, size, 3) float 0…1, RGB, any device → unit vectors (N, D) float32 on the CPU.
        features: the same before their length is made 1; its authors measure distances between them. None: by angle.
        measure: what its authors compare by, `DISTANCE` (Euclidean, of `features`) or `COSINE`.
        threshold: of that measure, where they take two faces for one person.
        on_photos: how often that errs on real photos, a sentence (docs/likeness.md).
    """

    name: str
    width: int
    size: int
    template: tuple[tuple[float, float], ...]
    same_person: float
    vectors: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor] | None = None
    measure: str = COSINE
    threshold: float = math.nan
    on_photos: str = ""

    def compare(self, faces: Tensor, reference: Tensor) -> Tensor:
        """Faces (…, D) against a reference (D,) by `measure`, both as `embed` gives them with `unit=False`."""
        if self.measure == DISTANCE:
            return (faces - reference).norm(dim=-1)
        return F.normalize(faces, dim=-1) @ F.normalize(reference, dim=-1)

    def is_same(self, measured: Tensor) -> Tensor:
        """Where its authors take two faces for one person, of what `compare` gave."""
        return measured < self.threshold if self.measure == DISTANCE else measured > self.threshold


@dataclass(frozen=True, eq=False)
class FaceVectors:
    """The faces of T frames.

    Attributes:
        vectors: (T, D), of length 1 unless asked for otherwise; NaN where a frame shows no face.
        found: (T,) bool.
    """

    vectors: Tensor
    found: Tensor


def load(name: str, folders: Iterable[Path] = ()) -> Embedding:
    """The embedding of that name.

    Args:
        folders: where to look for its model file, sub-folders included; dlib's is also looked for in the Python package
            `face_recognition_models`.

    Raises:
        WeightsMissingError, PackageMissingError: the model file or the package is missing; says how to get it.
    """
    if name == DLIB:
        return _dlib(_file((DLIB_FILE,), folders) or _packaged_dlib_file())
    if name != ARCFACE:
        raise WeightsMissingError(f"There is no face embedding '{name}'; choose one of {', '.join(EMBEDDINGS)}.")
    folders = list(folders)
    path = _file(ARCFACE_FILES, folders)
    if path is None:
        places = " or ".join(map(str, folders)) or "the folder given"
        raise WeightsMissingError(
            f"ArcFace needs one of {', '.join(ARCFACE_FILES)} in {places}. They come with InsightFace's model packs "
            "(antelopev2, buffalo_l; for non-commercial research). The embedding 'dlib' needs no licence. "
            "Copy one there, or choose 'dlib'."
        )
    return _arcface(path)


def recogniser(embedding: Embedding) -> Recogniser:
    """What tells people apart in `views.collect`, from an embedding: it takes crops aligned as FFHQ does."""
    to_chip = similarity(torch.tensor(FFHQ_TEMPLATE), torch.tensor(embedding.template))[None]

    def vectors(crops: Tensor) -> Tensor:
        return embedding.vectors(warp(crops, to_chip.to(crops).expand(len(crops), -1, -1), embedding.size))

    # Of many pairs of two tracks the most similar decides: what suits one pair takes strangers (docs/views.md).
    quarter = (1 - embedding.same_person) / 4
    return Recogniser(vectors, embedding.same_person + quarter, embedding.same_person - quarter)


def locate(
    frames: Iterable[Tensor],
    min_score: float = 0.6,
    device: torch.device | str | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Tensor:
    """The largest face's five landmarks in each frame (H, W, 3) → (T, 5, 2) px, NaN where there is no face.

    Args:
        min_score, device: as for `detection.detect`.
        progress: called after every frame.
    """
    landmarks = []
    for frame in frames:
        [faces] = search(as_photo(frame)[None], yunet.detect, min_score, device)
        landmarks.append(_largest(faces))
        progress()
    return torch.stack(landmarks) if landmarks else torch.empty(0, 5, 2)


def locate_small(
    frames: Tensor, min_score: float = 0.6, device: torch.device | str | None = None, batch: int = 64
) -> Tensor:
    """`locate` for small frames of one upright face, some 30 to 200 px wide: one look at their own size.

    Faces of true renders make the same vectors as after `locate` (docs/evaluation.md), in a fiftieth of the time.

    Args:
        frames: (T, H, W, 3) float 0…1.
        device: where the detector runs (default: where the frames are).

    Returns:
        (T, 5, 2) px on the CPU, NaN where there is no face.
    """
    parts = (part.to(device or part.device) for part in frames.split(batch))
    landmarks = [_largest(faces) for part in parts for faces in yunet.detect(part, min_score)]
    return torch.stack(landmarks) if landmarks else torch.empty(0, 5, 2)


def _largest(faces: Detections) -> Tensor:
    """(5, 2) px, the landmarks of the largest face; NaN where there is none."""
    return faces.landmarks[faces.areas.argmax()] if len(faces) else torch.full((5, 2), math.nan)


def embed(
    embedding: Embedding,
    frames: Sequence[Tensor] | Tensor,
    landmarks: Tensor | None = None,
    unit: bool = True,
) -> FaceVectors:
    """The largest face of each frame (H, W, C) as a vector.

    Args:
        frames: T pictures as `images.as_photo` takes them.
        landmarks: (T, 5, 2) px where they are known; otherwise the faces are detected.
        unit: unit vectors; else as the network gives them, which its authors' measure takes.

    Raises:
        ImageError: a frame cannot be used.
    """
    frames = [as_photo(frame, f"frame {i}") for i, frame in enumerate(frames)]
    landmarks = locate(frames) if landmarks is None else landmarks.float().cpu()
    found = landmarks.isfinite().flatten(1).all(1)
    vectors = torch.full((len(frames), embedding.width), math.nan)
    if found.any():
        chips = [chip(frames[i], landmarks[i], embedding) for i in found.nonzero()[:, 0].tolist()]
        network = embedding.vectors if unit else embedding.features or embedding.vectors
        vectors[found] = network(torch.stack(chips))
    return FaceVectors(vectors, found)


def chip(photo: Tensor, landmarks: Tensor, embedding: Embedding) -> Tensor:
    """Photo (H, W, 3), landmarks (5, 2) px → the upright face as the embedding takes it, (size, size, 3)."""
    to_chip = similarity(landmarks.to(photo), landmarks.new_tensor(embedding.template).to(photo))
    return warp(photo[None], to_chip[None], embedding.size)[0]


def warp(photos: Tensor, to_crop: Tensor, size: int) -> Tensor:
    """Cut squares out of pictures by similarities, bilinear; black where a picture ends.

    Where the picture is reduced, several samples make a pixel, so that fine detail does not alias.

    Args:
        photos: (B, H, W, 3) float.
        to_crop: (B, 2, 3), px of the photo → px of the crop; integers are pixel centres.

    Returns:
        (B, size, size, 3)
    """
    height, width = photos.shape[1:3]
    linear, shift = to_crop[:, :, :2], to_crop[:, :, 2]
    scale = linear[:, :, 0].norm(dim=1)
    times = max(1, min(8, math.ceil(1 / max(float(scale.min()), 1e-3) - 0.5)))
    place = (torch.arange(size * times, device=photos.device, dtype=photos.dtype) + 0.5) / times - 0.5
    target = torch.stack(torch.meshgrid(place, place, indexing="xy"), -1)  # (s, s, 2) x y
    back = linear.transpose(1, 2) / scale.square()[:, None, None]  # inverse of a rotation with scale
    source = torch.einsum("bij,bhwj->bhwi", back, target - shift[:, None, None])
    grid = (2 * source + 1) / source.new_tensor([width, height]) - 1
    crops = F.grid_sample(photos.movedim(-1, 1), grid, mode="bilinear", align_corners=False)
    return F.avg_pool2d(crops, times).movedim(1, -1)


def _dlib(path: Path) -> Embedding:
    network = _dlib_network(path)

    def padded(p: float) -> float:
        return (p + _DLIB_PADDING) / (1 + 2 * _DLIB_PADDING) * _DLIB_SIZE

    template = tuple((padded(x), padded(y)) for x, y in _DLIB_MEAN)

    def features(chips: Tensor) -> Tensor:
        pictures = list((chips.clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous().numpy())
        rows = [torch.tensor(list(row)) for row in network.compute_face_descriptor(pictures, 0)]
        return torch.stack(rows).float()

    return Embedding(
        DLIB, 128, _DLIB_SIZE, template, 0.92, lambda chips: F.normalize(features(chips), dim=1), features,
        DISTANCE, 0.6, DLIB_ON_PHOTOS,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _dlib_network(path: Path):
    dlib = require("dlib", "The face embedding 'dlib'", "dlib-bin", ["face_recognition_model_v1"])
    with _loading(path):
        return dlib.face_recognition_model_v1(str(path))


def _packaged_dlib_file() -> Path:
    package = importlib.util.find_spec("face_recognition_models")  # found, not imported: it wants setuptools
    path = Path(package.origin).parent / "models" / DLIB_FILE if package and package.origin else None
    if path is None or not path.is_file():
        raise WeightsMissingError(
            f"The face embedding 'dlib' needs the file {DLIB_FILE} (22 MB, CC0). Install it into ComfyUI's "
            "Python with: python -m pip install --no-deps dlib-bin face-recognition-models"
        )
    return path


def _arcface(path: Path) -> Embedding:
    session = _arcface_session(path)
    name = session.get_inputs()[0].name

    def vectors(chips: Tensor) -> Tensor:
        pictures = (chips.clamp(0, 1) * 2 - 1).movedim(-1, 1).float().cpu().contiguous().numpy()
        rows = [torch.from_numpy(session.run(None, {name: picture[None]})[0])[0] for picture in pictures]
        return F.normalize(torch.stack(rows), dim=1)

    return Embedding(
        ARCFACE, 512, _ARCFACE_SIZE, _ARCFACE_TEMPLATE, 0.3, vectors, threshold=0.3, on_photos=ARCFACE_ON_PHOTOS
    )


@lru_cache(maxsize=1)
def _arcface_session(path: Path):
    runtime = require("onnxruntime", "The face embedding 'ArcFace'", "onnxruntime", ["InferenceSession"])
    with _loading(path):
        return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    """Around what another library loads: its own kinds of errors, which have no common base, become WeightsError."""
    refuse_foreign(path)
    try:
        yield
    except Exception as error:
        raise WeightsError(f"{path} could not be loaded ({cause(error)}): copy or download it again.") from error


def _file(names: Sequence[str], folders: Iterable[Path]) -> Path | None:
    files = [path for folder in folders for path in files_in(folder, [".onnx", ".dat"], below=True)]
    return next((path for name in names for path in files if path.name.lower() == name.lower()), None)
