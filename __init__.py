"""ComfyUI-FantasyID: identity-preserving video from one photo."""

from importlib.util import find_spec

if find_spec("comfy_api"):  # inside ComfyUI; elsewhere (pytest, a plain interpreter) there is nothing to register
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
