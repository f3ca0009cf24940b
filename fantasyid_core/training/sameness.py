"""A loss against identity tokens that are the same for everybody.

Injection layers normalise the tokens that they read, so that nothing holds a token's size, and as long as nobody has
learned to read them, what differs between people is noise to the DiT: the encoder learns to drown it under a constant.
Vertex tokens lost all but 2 · 10⁻⁶ of their variance between people in 50 steps, and did not come back.
"""

import torch.nn.functional as F
from torch import Tensor

SPREAD = 0.4  # standard deviation between people that is enough, of tokens whose root mean square is 1


def sameness(tokens: Tensor) -> Tensor:
    """Tokens (B, N, K) of B people → 1 where they are the same for all, 0 where they differ by `SPREAD`; mean over N.

    The variance term of VICReg (Bardes et al. 2022), of whole tokens.
    """
    between = F.layer_norm(tokens.float(), tokens.shape[-1:]).var(0, correction=0).mean(-1)
    return F.relu(1 - between.clamp(min=1e-12).sqrt() / SPREAD).mean()
