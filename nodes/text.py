"""Prompts for CogVideoX: 226 tokens of T5, from the host's CLIPLoader or from a model's folder."""

from comfy_api.latest import io

from .host import notes, paths
from .host.base import FantasyIDNode, listed


class FantasyIDTextEncode(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDTextEncode",
            display_name="FantasyID Text Encode",
            **listed("5 video", "prompt", "text", "what happens"),
            description=(
                "Encodes a prompt as the model expects it: 226 tokens of its T5, without attention mask and without "
                "prompt weights. Use one for the prompt and one, usually empty, for the negative prompt."
            ),
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="FantasyID Load Text Encoder; for the published model also CLIPLoader with type "
                    "'cogvideox' ('pixart' before ComfyUI 0.21) and T5-XXL (fp8 files too).",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip=(
                        "What happens in the video. Describe the person, the action, the place and the light in full "
                        "sentences. What is longer than 225 tokens is cut off: some 150 words for the published model, "
                        "225 letters for FantasyID-nano."
                    ),
                ),
                io.String.Input(
                    "who",
                    optional=True,
                    force_input=True,
                    tooltip="Who is in the video, put in front of the text: from FantasyID Example Photo. The text "
                    "then goes on with clothes, place and action. With your own photo write the person into the text.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For the positive or negative input of a sampler.")],
        )

    @classmethod
    def run(cls, clip, text: str, who: str = "") -> io.NodeOutput:
        from .host.text import encode_text

        if who:
            text = f"{who} {text}"
            notes.show(text)
        return io.NodeOutput(encode_text(clip, text))


class FantasyIDLoadTextEncoder(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDLoadTextEncoder",
            display_name="FantasyID Load Text Encoder",
            **listed("1 model", "clip", "t5", "prompt"),
            description=(
                "Loads the T5 text encoder that lies in a model's folder (text_encoder/). If you already have T5-XXL, "
                "CLIPLoader with type 'cogvideox' ('pixart' before ComfyUI 0.21) saves disk space for the published "
                "model."
            ),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=paths.offered(paths.model_folders()),
                    tooltip="The model of FantasyID Load Model: its folder has a text_encoder/ in it.",
                )
            ],
            outputs=[io.Clip.Output(tooltip="For FantasyID Text Encode.")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None) -> bool:
        return paths.left_to_the_run(model_name)

    @classmethod
    def run(cls, model_name: str) -> io.NodeOutput:
        from .host.text import load_text_encoder

        return io.NodeOutput(load_text_encoder(paths.resolve(model_name)))


NODES = [FantasyIDLoadTextEncoder, FantasyIDTextEncode]
