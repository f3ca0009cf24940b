"""Set-up and driving of the real ComfyUI for the two commands and the tests. Not used by the pack itself."""
