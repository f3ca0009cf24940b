"""ComfyUI-FantasyID: identity-preserving video from one photo."""

from importlib.util import find_spec

# Inside ComfyUI, as its package; elsewhere (a plain interpreter; pytest, of a folder with a hyphen) there is no host.
if __package__ and find_spec("comfy_api"):
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
