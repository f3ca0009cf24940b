"""DiT: the video transformer with layer-aware injection (paper, section 3.3)."""
