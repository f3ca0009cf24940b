"""FantasyID: identity-preserving video generation as a plain PyTorch library (no ComfyUI in here).

A photo's way through it: detection → reconstruction → views → fusion → injection → sampling → video.
"""
