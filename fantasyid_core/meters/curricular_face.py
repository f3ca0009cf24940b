"""CurricularFace's IR-101: a face embedding that ConsisID and OpenS2V-Eval report beside ArcFace (FaceSim-Cur).

Huang et al., CurricularFace (CVPR 2020); layout and names as in `glint360k_curricular_face_r101_backbone.bin`, the file
that both protocols load. The file is the user's: nothing is downloaded.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..io import weights

FILE = "glint360k_curricular_face_r101_backbone"
"""The file's name without its ending: .bin, or .safetensors where somebody converted it."""
SIZE = 112
UNITS = (3, 13, 30, 3)
WIDTHS = (64, 128, 256, 512)
EMBEDDING = 512


class Unit(nn.Module):
    """A residual unit of an improved ResNet: norm, convolution, norm, PReLU, convolution, norm; no bottleneck."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.shortcut_layer = (
            nn.MaxPool2d(1, stride)
            if width_in == width
            else nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(width_in),
            nn.Conv2d(width_in, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.res_layer(hidden_states) + self.shortcut_layer(hidden_states)


class CurricularFace(nn.Module):
    """Aligned faces → embeddings.

    Args:
        units: residual units of each of the four levels.
        widths: their channels.
        embedding: D.
    """

    def __init__(self, units: Sequence[int] = UNITS, widths: Sequence[int] = WIDTHS, embedding: int = EMBEDDING):
        super().__init__()
        first, last = widths[0], widths[-1]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first)
        )
        widths_in = (first, *widths[:-1])
        self.body = nn.Sequential(
            *(
                Unit(width if i else width_in, width, 1 if i else 2)
                for count, width_in, width in zip(units, widths_in, widths, strict=True)
                for i in range(count)
            )
        )
        side = SIZE // 2 ** len(units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(last * side * side, embedding),
            nn.BatchNorm1d(embedding, affine=False),
        )

    def forward(self, faces: Tensor) -> Tensor:
        """(N, 3, 112, 112) RGB −1…1 → (N, D), of any length."""
        return self.output_layer(self.body(self.input_layer(faces)))

    @torch.inference_mode()
    def embed(self, faces: Tensor) -> Tensor:
        """(N, 224, 224, 3) uint8 RGB, aligned as InsightFace's `norm_crop` does → unit vectors (N, D).

        Halved as OpenCV's `resize` does it at exactly 2: the mean of four pixels, rounded.
        """
        parameter = next(self.parameters())
        halved = F.avg_pool2d(faces.movedim(-1, 1).float(), 2).add(0.5).floor()
        return F.normalize(self(((halved / 255 - 0.5) / 0.5).to(parameter)), dim=1).float().cpu()


def load(path: Path, device: torch.device | str = "cpu") -> CurricularFace:
    """The network with the weights of a file, for inference.

    Raises:
        WeightsError: the file is not of this network.
    """
    with torch.device("meta"):
        network = CurricularFace(UNITS, WIDTHS, EMBEDDING)
    tensors = weights.read(path)
    counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    weights.load_into(network, counters | tensors, what="face embedding (CurricularFace IR-101)")
    return network.eval().requires_grad_(False).to(device)
