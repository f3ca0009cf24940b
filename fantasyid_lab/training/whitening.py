"""Latents whose directions vary about alike, by way of the autoencoder's own weights.

Where nothing but pixels and a little KL shape them, nearly all of the latents' variance is the picture's colours: three
of 16 directions held 94 % (`docs/training.md`). A DiT that predicts such latents learns little else: eyes and mouths
are a thousandth of its loss. The published layout knows one factor for all channels, so the map is folded into the
convolutions on either side of the latents.
"""

import torch
from torch import Tensor, nn

POWER = 0.75  # of the way to equal variances; coarse things then still come out of the noise first


def whitening(latents: Tensor, power: float = POWER) -> tuple[Tensor, Tensor]:
    """Latents (B, t, 16, h, w) → their mean (16,) and a symmetric matrix (16, 16); `matrix` · (z − mean) has a mean
    variance of 1, and variances λ become λ ^ (1 − power), in proportion.
    """
    rows = latents.movedim(2, 0).flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(rows))
    values = values.clamp(min=1e-8)
    factors = values.pow(-power / 2) / values.pow(1 - power).mean().sqrt()
    return rows.mean(1).float(), (vectors @ torch.diag(factors) @ vectors.mT).float()


@torch.no_grad()
def fold(vae: nn.Module, mean: Tensor, matrix: Tensor, std: Tensor) -> None:
    """Change an autoencoder's weights so that its latents z are `matrix` · (z − `mean`), and its decoder takes such.

    It then reconstructs as before but for 1 / 500 at the picture's border, where convolutions see zeros beyond it.

    Args:
        spread: (16,) the posterior's standard deviation, mean over some latents. What it becomes does not depend on the
            picture any more, as logarithms of variances do not mix linearly; training makes it so again.
    """
    count, back = len(mean), torch.linalg.inv(matrix)
    out = vae.encoder.conv_out.conv
    out.weight[:count] = torch.einsum("ij,jcthw->icthw", matrix, out.weight[:count])
    out.bias[:count] = matrix @ (out.bias[:count] - mean)
    out.weight[count:] = 0
    out.bias[count:] = (matrix.square() @ std.square()).log()
    for name, conv in vae.decoder.named_modules():
        if name == "conv_in.conv" or name.endswith((".conv_y.conv", ".conv_b.conv")):
            conv.bias += torch.einsum("oithw,i->o", conv.weight, mean)
            conv.weight.copy_(torch.einsum("oithw,ij->ojthw", conv.weight, back))
