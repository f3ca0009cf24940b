"""Video: frames and latents, and CogVideoX's autoencoder."""
