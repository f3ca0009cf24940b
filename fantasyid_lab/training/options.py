"""What each stage takes under `[options]`: a frozen dataclass a stage."""

from dataclasses import dataclass, field

from fantasyid_core.dit import byte_tokens
from fantasyid_core.meters import attribute_regressor

from .randomise import Randomisation


@dataclass(frozen=True)
class FaceOptions:
    """Options of stage face.

    Attributes:
        temperature: of InfoNCE.
        regressor_photos: share of the batch's photos that the regressor sees.
        vertex_axes: which coordinates of vertices the spiral network reads, some of "xyz"; "": as the model has them.
        randomise: what is done to crops and photos.
    """

    temperature: float = 0.07
    regressor_photos: float = 1.0
    vertex_axes: str = ""
    randomise: Randomisation = field(default_factory=Randomisation)


@dataclass(frozen=True)
class VaeOptions:
    """Options of stage vae.

    Attributes:
        window: frames of most batches; the autoencoder's first chunk has 9.
        crop: their side in px; most are cut out around the face, which is what is hard.
        long_every: every how many steps a batch of whole clips comes at full size, with `long_share` of the samples.
        face_weight: of pixels of the face against others.
        detail_weight: what pixels near eyes, brows, nose and mouth count on top.
        gradient_weight, kl_weight: of the loss's other terms.
        likeness_weight: of what the image tower sees otherwise in the face, in one frame of each sample; tower: file of
            its weights, "" for the run's own, which is untrained before stage `face`.
        turning_share: share of the windows that are the fastest turning of `CANDIDATES` ones, the others are any.
        turning_weight: what pixels of the face count on top in frames that turn by `FAST_TURN` degrees or more.
        temporal_weight: of the differences between neighbouring frames.
        edge_weight: of how strong edges are, on average over 4 × 4 px: blur costs there that hardly shows in the rest.
        encoder: false: the decoder alone is trained, so that a DiT that knows the latents stays of use.
    """

    window: int = 9
    crop: int = 112
    long_every: int = 8
    long_share: float = 0.25
    face_weight: float = 3.0
    detail_weight: float = 4.0
    gradient_weight: float = 1.0
    kl_weight: float = 1e-4
    likeness_weight: float = 0.0
    tower: str = ""
    turning_share: float = 0.0
    turning_weight: float = 0.0
    temporal_weight: float = 0.0
    edge_weight: float = 0.0
    encoder: bool = True


@dataclass(frozen=True)
class AttributeOptions:
    """Options of stage attributes.

    Attributes:
        start_from: folder of an attribute regressor to go on from, "" for a new one.
        widths: channels of a new one, see `attribute_regressor.AttributeRegressor`.
    """

    start_from: str = ""
    widths: tuple[int, ...] = attribute_regressor.WIDTHS


@dataclass(frozen=True)
class TextOptions:
    """Options of stage text.

    Attributes:
        prefill: captions before the first step.
        new_per_step: captions that are drawn anew for every step.
    """

    prefill: int = 6000
    new_per_step: int = 8


@dataclass(frozen=True)
class BaseOptions:
    """Options of stage base.

    Attributes:
        train_text: whether the text encoder is trained too, or only the DiT.
        text_dropout: share of samples whose text is empty, for guidance.
        face_weight: of latents of the face.
        pictures: share of the steps that train on photos, of which `pictures_batch` times as many fit.
        landmark_weight: of the loss of `landmark_loss`, 0 for none; landmark_block: after which block it is computed.
    """

    train_text: bool = True
    text_dropout: float = 0.1
    face_weight: float = 1.5
    pictures: float = 0.0
    pictures_batch: int = 3
    landmark_weight: float = 0.0
    landmark_block: int = 2


@dataclass(frozen=True)
class IdentityOptions:
    """Options of stage identity, most of them rows of the ablation.

    Attributes:
        data: "" for the pool of synthetic people, or a folder of real clips (`clip_folder`), read at `fps`.
        multi_view: the reference comes from another photo of the person; false: from the clip itself.
        branch_2d, branch_3d: which tokens are injected.
        shared_layer: one injection layer for all blocks in place of one for each.
        first_frame: the reference crop goes in as first latent frame too, as released; a model that never saw one
            learns to take it in.
        identity_dropout: share of samples without an identity: nothing is injected, the image latents are zeros.
        encoder_lr_mult: factor on the learning rate of the abstractor, and mesh_lr_mult on that of spiral network and
            reducer; 0 leaves them as stage `face` taught them. Nothing in this stage holds the scale of their tokens,
            which are normalised where they are read: at a DiT's rate they grow without bound.
        unfreeze: beginnings of names of DiT parameters that are trained as well, "" for all, and dit_lr_mult: factor on
            their learning rate. The injection layers have the full rate.
        high_noise_fraction: share of the samples with times in the noisier half, where likeness is decided.
        loss_weighting: how much samples count by what the loss at their times was at the start, see
            `diffusion.loss_weights`.
        text_dropout, face_weight: as in `BaseOptions`.
        pictures, pictures_batch: as in `BaseOptions`, for the pool; pictures_text: of these steps' captions, how many
            tokens are read (226 for all): a picture has 100 tokens of its own, and photos' captions are short.
        randomise: what is done to the reference crops, as in `FaceOptions`.
        acting_share: share of the samples whose vertex tokens are those of the mesh as it moves in the clip, in each
            latent frame its own; the others' mesh is at rest. For the pool alone, and with both branches.
        acting_noise: factor on errors as FantasyID Capture has them in what such meshes do; acting_missing: share of
            them in a stretch of which the face was not seen, see `acting.as_captured`.
        checkpointing: recompute the DiT's blocks in the backward pass, for models that fill the memory.
    """

    data: str = ""
    fps: float = 8
    multi_view: bool = True
    branch_2d: bool = True
    branch_3d: bool = True
    shared_layer: bool = False
    first_frame: bool = False
    identity_dropout: float = 0.0
    encoder_lr_mult: float = 1.0
    mesh_lr_mult: float = 1.0
    unfreeze: tuple[str, ...] = ()
    dit_lr_mult: float = 1.0
    high_noise_fraction: float = 0.5
    loss_weighting: float = 0.0
    text_dropout: float = 0.1
    face_weight: float = 4.0
    pictures: float = 0.0
    pictures_batch: int = 3
    pictures_text: int = byte_tokens.TOKENS
    randomise: Randomisation = field(default_factory=Randomisation)
    acting_share: float = 0.0
    acting_noise: float = 1.0
    acting_missing: float = 0.0
    checkpointing: bool = False


@dataclass(frozen=True)
class DistilOptions(IdentityOptions):
    """Options of stage distil: clips and references as in stage identity, first frame and branches as the model has.

    Attributes:
        steps: of the student, by ddim without guidance; substeps: of the teacher for each of them, with `guidance` and
            `guide_identity` as `pipeline.Guidance` has them.
        rank: of the LoRA.
    """

    encoder_lr_mult: float = 0.0
    mesh_lr_mult: float = 0.0
    text_dropout: float = 0.0
    steps: int = 8
    substeps: int = 2
    guidance: float = 4.0
    guide_identity: bool = True
    rank: int = 32


Options = FaceOptions | VaeOptions | AttributeOptions | TextOptions | BaseOptions | IdentityOptions | DistilOptions
OPTIONS: dict[str, type[Options]] = {
    "face": FaceOptions,
    "vae": VaeOptions,
    "attributes": AttributeOptions,
    "text": TextOptions,
    "base": BaseOptions,
    "identity": IdentityOptions,
    "distil": DistilOptions,
}
RENAMED_STAGES = {"judge": "attributes"}  # what older commands and configurations say, and the name now
