"""The explicit download: nothing is fetched unless this node runs with its licence box ticked."""

import logging

import comfy.model_management
import comfy.utils
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..fantasyid_core.io import download
from .host import notes, paths
from .host.base import FantasyIDNode, listed

LICENCES = (
    "FantasyID's code is under Apache-2.0; its weights build on CogVideoX-5B, with its own licence: read both "
    "at the model's page. DECA, which tells the face's 3D shape from the photo, and FLAME, the 3D head whose shape "
    "that is, are non-commercial and not part of this download. The release's InsightFace (non-commercial), detection "
    "and parsing models are skipped: nothing needs them."
)


class FantasyIDDownload(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDDownload",
            display_name="FantasyID Download Model",
            **listed("1 model", "install", "weights", "hugging face"),
            description=(
                "Downloads the published model from Hugging Face into models/fantasyid. It resumes after an "
                "interruption, stays at one revision and checks every file's hash. The first run without 'confirm' "
                f"says under the node what would be fetched and how large it is. {LICENCES}"
            ),
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "repository",
                    default=download.REPOSITORY,
                    tooltip="owner/name on Hugging Face, or on the mirror that the variable HF_ENDPOINT names.",
                ),
                io.String.Input(
                    "revision",
                    default="main",
                    tooltip=(
                        "A commit (40 digits), or a branch or tag that is resolved once: the commit is then kept in "
                        f"{download.LOCK} in the model's folder, with the SHA-256 of every file."
                    ),
                ),
                io.String.Input(
                    "folder_name", default="FantasyID", tooltip="Name of the model's folder in models/fantasyid."
                ),
                io.Boolean.Input(
                    "confirm", default=False, tooltip=f"I have read the licences and want to download. {LICENCES}"
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="model_name", tooltip="The folder's name, as the loaders list it after a refresh."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder_name: str | None, **others) -> float:
        """Run again when the folder has changed or gone."""
        return paths.fingerprint(lambda name: paths.download_folder(name) / download.LOCK, folder_name)

    @classmethod
    def run(cls, repository: str, revision: str, folder_name: str, confirm: bool) -> io.NodeOutput:
        folder = paths.download_folder(folder_name)
        plan = download.plan(folder, repository, revision)
        what = f"{len(plan.files)} files, {plan.size / 1e9:.2f} GB, {repository} at {plan.commit}"
        if not confirm:
            message = (
                f"Nothing was downloaded yet. It would be {what}, to {folder}. {LICENCES} "
                "To download it, tick 'confirm' and run again."
            )
            notes.show(message)
            # Not red: this is the answer that was asked for. What hangs on the model's name waits without a word.
            return io.NodeOutput(ExecutionBlocker(None), ui={"text": [message]})
        logging.info("FantasyID: downloading %s to %s", what, folder)
        bar = comfy.utils.ProgressBar(1000)

        def progress(done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            permille = done * 1000 // max(total, 1)
            if permille != bar.current:
                bar.update_absolute(permille)

        download.fetch(plan, folder, progress)
        message = f"Downloaded: {what}, to {folder}. Press R, then choose '{folder_name}' in FantasyID Load Model."
        notes.show(message)
        return io.NodeOutput(folder_name, ui={"text": [message]})


NODES = [FantasyIDDownload]
