"""An identity that guidance leads to, under every guider of ComfyUI: one prediction, put together by hand."""

import sys
from pathlib import Path

import host

folder = Path(sys.argv[1])
host.start(Path(sys.argv[2]))

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from comfy_extras import nodes_custom_sampler, nodes_perpneg, nodes_slg  # noqa: E402
from pack.fantasyid_core.dit.injection import Injection  # noqa: E402
from pack.fantasyid_core.errors import SamplingError  # noqa: E402
from pack.fantasyid_core.fusion.checkpoint import split_published  # noqa: E402
from pack.fantasyid_core.io.weights import read, read_config  # noqa: E402
from pack.nodes.host.model import load_model  # noqa: E402
from pack.nodes.host.options import add_injection  # noqa: E402
from pack.nodes.sampling import trailing_sigmas  # noqa: E402
from torch import Tensor  # noqa: E402

torch.set_grad_enabled(False)
config = read_config(folder / "transformer")
seed = torch.Generator().manual_seed(0)
NOISE = torch.randn(1, 16, 2, config["sample_height"], config["sample_width"], generator=seed)
TEXT, OTHER, NEGATIVE, EMPTY = torch.randn(4, 1, 226, 32, generator=seed)
TOKENS = torch.randn(20, 64, generator=seed)
ONCE = comfy.samplers.KSAMPLER(
    lambda model, x, sigmas, extra_args, **_: model(x, sigmas[:1].expand(len(x)), **extra_args)
)
CFG = 6.0
found: dict = {}


def load():
    return load_model(config, split_published(read(folder / "transformer")))


def cond(text: Tensor, **more) -> list:
    return [[text, more]]


def prediction(guider, sampler=ONCE, steps: int = 4, noise: Tensor = NOISE) -> Tensor:
    sigmas = trailing_sigmas(guider.model_patcher, steps)
    return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=0, disable_pbar=True)


def basic(model, positive: list) -> Tensor:
    return prediction(nodes_custom_sampler.BasicGuider.execute(model, positive).args[0])


def cfg_guider(model, positive: Tensor = TEXT, negative: Tensor = NEGATIVE, cfg: float = CFG):
    return nodes_custom_sampler.CFGGuider.execute(model, cond(positive), cond(negative), cfg).args[0]


def dual(model, second: Tensor, style: str, cfgs: tuple[float, float] = (3.0, CFG)):
    conds = cond(TEXT), cond(second), cond(NEGATIVE)
    return nodes_custom_sampler.DualCFGGuider.execute(model, *conds, *cfgs, style).args[0]


def perpneg(model, negative: Tensor, scale: float):
    return nodes_perpneg.PerpNegGuider.execute(model, cond(TEXT), cond(negative), cond(EMPTY), CFG, scale).args[0]


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def refusal(action) -> str:
    try:
        action()
    except SamplingError as error:
        return str(error)
    return "accepted"


model = load()
both = add_injection(model, Injection(TOKENS))
guided = add_injection(model, Injection(TOKENS, guided=True))
with_it = {name: basic(both, cond(text)) for name, text in (("text", TEXT), ("other", OTHER), ("negative", NEGATIVE))}
without = {name: basic(model, cond(text)) for name, text in (("negative", NEGATIVE), ("empty", EMPTY))}
right = without["negative"] + CFG * (with_it["text"] - without["negative"])

found["BasicGuider"] = difference(basic(guided, cond(TEXT)), with_it["text"])
found["CFGGuider"] = difference(prediction(cfg_guider(guided)), right)
found["both branches"] = difference(
    prediction(cfg_guider(both)), with_it["negative"] + CFG * (with_it["text"] - with_it["negative"])
)
sigmas = trailing_sigmas(guided, 1)
found["KSampler"] = difference(
    comfy.sample.sample(
        guided, NOISE, 1, CFG, "euler", "simple", cond(TEXT), cond(NEGATIVE), torch.zeros_like(NOISE), seed=0,
        sigmas=sigmas, disable_pbar=True,
    ),
    prediction(cfg_guider(guided), comfy.samplers.sampler_object("euler"), 1),
)  # fmt: skip
for style in ("regular", "nested"):
    found[f"DualCFGGuider {style}, both prompts the same"] = difference(prediction(dual(guided, TEXT, style)), right)
negative, second, first = without["negative"], with_it["other"], with_it["text"]
found["DualCFGGuider regular"] = difference(
    prediction(dual(guided, OTHER, "regular")), negative + CFG * (second - negative) + 3 * (first - second)
)
found["DualCFGGuider nested"] = difference(
    prediction(dual(guided, OTHER, "nested")), negative + CFG * (second + 3 * (first - second) - negative)
)

empty = without["empty"]
found["PerpNegGuider, nothing negative"] = difference(
    prediction(perpneg(guided, NEGATIVE, 0.0)), empty + CFG * (first - empty)
)
found["PerpNegGuider"] = difference(
    prediction(perpneg(guided, NEGATIVE, 0.7)), nodes_perpneg.perp_neg(NOISE, first, negative, empty, 0.7, CFG)
)
found["guided acts under PerpNegGuider"] = difference(
    prediction(perpneg(guided, NEGATIVE, 0.7)), prediction(perpneg(both, NEGATIVE, 0.7))
)
patched = nodes_perpneg.PerpNeg.execute(guided, cond(EMPTY), 0.7).args[0]
found["PerpNeg"] = difference(
    prediction(cfg_guider(patched)), nodes_perpneg.perp_neg(NOISE, first, negative, empty, 0.7, CFG)
)

# nodes that ask for one branch again, alone, in the middle of a step
skip_none = nodes_slg.SkipLayerGuidanceDiT.execute(guided, 2.0, 0.0, 1.0, "99", "", 0.0).args[0]
found["SkipLayerGuidanceDiT"] = difference(prediction(cfg_guider(skip_none)), right)
seen = []


def again(args: dict) -> Tensor:
    for name in ("cond", "uncond"):
        seen.extend(
            comfy.samplers.calc_cond_batch(
                args["model"], [args[name]], NOISE_IN[0], args["sigma"], args["model_options"]
            )
        )
    return args["denoised"]


NOISE_IN = []
asking = guided.clone()
asking.set_model_sampler_pre_cfg_function(lambda args: NOISE_IN.append(args["input"]) or args["conds_out"])
asking.set_model_sampler_post_cfg_function(again)
prediction(cfg_guider(asking))
latents = [model.model.process_latent_out(x) for x in seen]
found["a branch alone"] = [difference(latents[0], first), difference(latents[1], negative)]

# a prompt for a part of the run or of the picture, two samples, a context of its own
guider = comfy.samplers.CFGGuider(guided)
guider.set_conds(cond(TEXT) + cond(OTHER, start_percent=0.5), cond(NEGATIVE))
guider.set_cfg(CFG)
found["a prompt that sets in later"] = difference(prediction(guider), right)
twice = prediction(cfg_guider(guided), noise=NOISE.repeat(2, 1, 1, 1, 1))
found["two samples"] = max(difference(twice[i : i + 1], right) for i in range(2))


class OwnGuider(comfy.samplers.CFGGuider):
    """Of another pack, with a conditioning of its own."""

    def set_conds(self, positive: list, style: list) -> None:
        self.inner_set_conds({"positive": positive, "style": style})

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
        conds = [self.conds["style"], self.conds["positive"]]
        style, positive = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        return style + CFG * (positive - style)


def own(model) -> OwnGuider:
    guider = OwnGuider(model)
    guider.set_conds(cond(TEXT), cond(NEGATIVE))
    return guider


found["unknown guider"] = refusal(lambda: prediction(own(guided)))
found["unknown guider, both branches"] = difference(
    prediction(own(both)), with_it["negative"] + CFG * (with_it["text"] - with_it["negative"])
)

if hasattr(nodes_custom_sampler, "DualModelGuider"):
    arguments = {"positive": cond(TEXT), "cfg": CFG, "negative": cond(NEGATIVE)}
    by_hand = with_it["negative"] + CFG * (with_it["text"] - with_it["negative"])
    for name, models, expected in (
        ("guided", (guided, load()), right),
        ("both guided", (guided, add_injection(load(), Injection(TOKENS, guided=True))), right),
        ("identity in one", (both, load()), right),
        ("identity in both", (both, add_injection(load(), Injection(TOKENS))), by_hand),
    ):
        guider = nodes_custom_sampler.DualModelGuider.execute(models[0], model_negative=models[1], **arguments).args[0]
        found[f"DualModelGuider, {name}"] = difference(prediction(guider), expected)
host.report(**found)
