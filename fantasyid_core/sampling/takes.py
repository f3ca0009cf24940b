"""Several takes of one video: how far each is sampled before it is judged, and what of it is looked at."""

from torch import Tensor

EVERY = 3  # latent frames, of which one is looked at


def steps_until_judged(steps: int, share: float) -> int:
    """After how many of its steps a take is judged: at least one, and `share` of them, 0…1."""
    return min(steps, max(1, round(share * steps)))


def glimpse(latents: Tensor) -> Tensor:
    """Every third latent frame of videos (B, C, T, h, w), each as if a video began there: (B · n, C, 1, h, w).

    The autoencoder makes a single picture of each, in a fraction of the time that the video takes.
    """
    return latents[:, :, ::EVERY].movedim(2, 1).flatten(0, 1)[:, :, None]
