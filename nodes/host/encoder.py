"""The identity encoder under the host's memory management."""

import logging
from collections.abc import Mapping
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ...fantasyid_core.errors import WeightsMissingError
from ...fantasyid_core.fusion.checkpoint import split_published
from ...fantasyid_core.fusion.identity import Identity, IdentityEncoder, build_encoder, fuse
from ...fantasyid_core.fusion.image_tower import ImageTower
from ...fantasyid_core.fusion.mesh_hierarchy import load as load_topology
from ...fantasyid_core.io.layout import TOPOLOGIES, TOWERS
from ...fantasyid_core.reconstruction.animation import Animation
from ...fantasyid_core.reconstruction.face_mesh import FaceMesh
from ...fantasyid_core.views.collection import FaceViews
from .compat import make_patcher, read_weights
from .operators import Operators
from .paths import BY_HAND, DOWNLOAD


class NativeEncoder:
    """Image tower, face abstractor, spiral network and reducer of one model; read from disk at first use."""

    def __init__(self, config: Mapping, weights: Path, face_encoder: list[Path], face_model: list[Path]):
        self._config, self._weights = config, weights
        self._face_encoder, self._face_model = face_encoder, face_model
        # ComfyUI asks every node's output for its `patcher`: None until there is one, so that asking reads no file.
        self.patcher: comfy.model_patcher.ModelPatcher | None = None

    def fuse(self, views: FaceViews, mesh: FaceMesh, combine: str, acting: Animation | None = None) -> Identity:
        """Load onto the host's device, as its memory allows, and compute the identity there; arguments as `fuse` of the
        core takes them.
        """
        patcher = self.loaded()
        comfy.model_management.load_models_gpu([patcher])
        return fuse(patcher.model, views, mesh, combine, patcher.load_device, acting)

    @property
    def has_learned_acting(self) -> bool:
        """Whether the model was trained with meshes that move."""
        return bool(self._config.get("trained_with_acting", False))

    def face_tokens(self, crops: Tensor) -> Tensor:
        """Aligned crops (N, 512, 512, 3) in 0…1 → face tokens (N, Q, K), on the host's device."""
        patcher = self.loaded()
        comfy.model_management.load_models_gpu([patcher])
        return patcher.model.face_tokens(crops.to(patcher.load_device, torch.float32))

    @property
    def template(self) -> Tensor:
        """(V, 3) the mean face of the meshes that the model was trained on, metres, on the CPU."""
        return self.loaded().model.template

    def loaded(self) -> comfy.model_patcher.ModelPatcher:
        """Its patcher, read from disk at the first call. Raises WeightsMissingError, WeightsError."""
        if self.patcher is None:
            self.patcher = make_patcher(
                self._build(),
                comfy.model_management.get_torch_device(),
                comfy.model_management.unet_offload_device(),
            )
        return self.patcher

    def _build(self) -> IdentityEncoder:
        # Read again rather than kept: what is held of a mapped file holds all of it.
        published = split_published(read_weights(self._weights))
        if not published.has_encoder:
            raise WeightsMissingError(
                "Choose the folder that the model was made from as parts_from of FantasyID Load Model: "
                f"{self._weights} has no identity encoder, the tensors face_abstractor.*, vertex_spiral_net.* and "
                "vertex_reducer.*. It is a plain CogVideoX, or ComfyUI saved it from a MODEL, which has none. "
                f"Or: {DOWNLOAD}. {BY_HAND}"
            )
        tower = find_first(self._face_encoder, TOWERS, f"{DOWNLOAD}: the image tower (face_encoder/)", BY_HAND)
        topology = find_first(
            self._face_model,
            TOPOLOGIES,
            "Copy transform.pkl into the model's face_model folder: the mesh hierarchy of the spiral network",
            "transform.pkl comes with the code of FantasyID (assets/) and of CVTHead.",
        )
        logging.info("FantasyID: %s", published.report)
        return build_encoder(
            published,
            ImageTower.from_state_dict(read_weights(tower), live_only=True, operations=Operators),
            load_topology(topology),
            self._config,
            Operators,
        )


def find_first(folders: list[Path], names: tuple[str, ...], cure: str, source: str) -> Path:
    """The first of `names` in the first of `folders` that has one.

    Args:
        cure: what to do where there is none, and what that is.
        source: where it comes from.

    Raises:
        WeightsMissingError: there is none.
    """
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    expected = " or ".join(str(folder / name) for folder in folders for name in names)
    raise WeightsMissingError(f"{cure} is missing; copy it to {expected}. {source}")
