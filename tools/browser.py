"""ComfyUI's own page in a headless Chromium: open a workflow as an artist does, run it, see what comes out."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

# In 1.49 the test id is on the button itself, in 1.32 around it and a menu's.
_RUN = "button[data-testid=queue-button], [data-testid=queue-button] button"

# What fades out lies over the page for as long, on a busy machine for many seconds; and the mask of a page that is
# covered again while it fades is never taken away.
_AT_ONCE = """
  * { animation-duration: 1ms !important; transition-duration: 0s !important; }
  .p-overlay-mask-leave { pointer-events: none !important; }
"""

# Playwright's own way fails where the page asks another server for something at that moment, which its policy forbids.
_ADD_STYLE = """(text) => {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(text);
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
}"""

# Links that lead nowhere or join two types, inputs that name a link that is not there.
_WRONG_LINKS = """() => {
  const wrong = [], types = (type) => String(type).split(",");
  for (const link of app.graph.links.values()) {
    const from = app.graph.getNodeById(link.origin_id)?.outputs[link.origin_slot];
    const to = app.graph.getNodeById(link.target_id)?.inputs[link.target_slot];
    if (!from?.links?.includes(link.id) || to?.link !== link.id || !types(to.type).includes(from.type))
      wrong.push(`link ${link.id}: ${link.origin_id}.${link.origin_slot} → ${link.target_id}.${link.target_slot}`);
  }
  for (const node of app.graph.nodes) for (const input of node.inputs ?? [])
    if (input.link != null && !app.graph.links.get(input.link)) wrong.push(`${node.title}: ${input.name}`);
  return wrong;
}"""


_BOXES = """() => {
  const { scale, offset } = app.canvas.ds, canvas = document.querySelector("#graph-canvas").getBoundingClientRect();
  const nodes = app.graph.nodes.map((node) => {
    const drawn = document.querySelector(`[data-node-id="${node.id}"]`);
    if (!drawn) {
      const [x, y, width, height] = node.boundingRect;
      return [node.title, [x, y, x + width, y + height]];
    }
    const { left, top, right, bottom } = drawn.getBoundingClientRect();
    const x = (at) => (at - canvas.left) / scale - offset[0], y = (at) => (at - canvas.top) / scale - offset[1];
    return [node.title, [x(left), y(top), x(right), y(bottom)]];
  });
  const groups = app.graph.groups.map(({ title, pos, size }) => [title, [...pos, pos[0] + size[0], pos[1] + size[1]]]);
  return { nodes, groups };
}"""


def find_browser() -> Path | None:
    """An installed Chromium, Chrome or Edge; `None` where there is none."""
    found = [path for name in NAMES if (path := shutil.which(name))]
    found += [place for place in PLACES if Path(place).is_file()]
    return Path(found[0]) if found else None


@contextmanager
def open_browser(executable: Path) -> Iterator["Browser"]:
    """Start the browser at `executable`; it ends with the context."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Help:
    """A node's help as the page shows it.

    Attributes:
        text: all words on the page.
        pictures: name and width (0: not loaded) of each.
        too_wide: tables, pictures and blocks of code that reach out of the panel.
    """

    text: str
    pictures: list[tuple[str, int]]
    too_wide: list[str]


class ComfyPage:
    """The page of the server at `url`, in a profile of its own, with nothing opened yet.

    Args:
        vue_nodes: have nodes drawn as parts of the page ("Nodes 2.0") instead of on a canvas, where the page can.
    """

    def __init__(self, browser: "Browser", url: str, vue_nodes: bool = False):
        self.page: Page = browser.new_page(viewport={"width": 1600, "height": 900})
        # Else the page greets its first visitor with its template browser.
        self.page.request.post(f"{url}/settings/Comfy.TutorialCompleted", data="true")
        self.page.request.post(f"{url}/settings/Comfy.VueNodes.Enabled", data=json.dumps(vue_nodes))
        self.page.goto(url)
        self.page.wait_for_function("() => window.app?.vueAppReady && window.app.graph")
        self.page.get_by_test_id("queue-button").wait_for()
        self.page.evaluate(_ADD_STYLE, _AT_ONCE)

    def close(self) -> None:
        """Close the page."""
        self.page.context.close()

    def close_dialogs(self) -> None:
        """Close what lies over the page, such as what an error of the run before said."""
        close = self.page.locator(".p-dialog-close-button:visible, [role=dialog] [aria-label=Close]:visible")
        while close.count():
            close.last.click()
            self.page.wait_for_timeout(100)

    def drop(self, file: Path) -> None:
        """Drop a workflow file on the canvas, and wait until the page has loaded it."""
        self.close_dialogs()
        content = file.read_text("utf-8")
        transfer = self.page.evaluate_handle(
            """([content, name]) => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([content], name, { type: "application/json" }));
              return transfer;
            }""",
            [content, file.name],
        )
        self.page.dispatch_event("#graph-canvas", "drop", {"dataTransfer": transfer})
        self._wait_for_graph(file)

    def _wait_for_graph(self, file: Path) -> None:
        """Wait until the page has loaded what a workflow file holds."""
        name = json.loads(file.read_text("utf-8"))["id"]
        self.page.wait_for_function("(id) => app.graph.id === id && !app.extensionManager.spinner", arg=name)

    def red(self) -> list[str]:
        """What the page shows as missing or wrong: nodes it does not know, nodes marked red, invalid links."""
        nodes = self.page.evaluate(
            """() => app.graph.nodes
              .filter((node) => node.has_errors || !LiteGraph.registered_node_types[node.type])
              .map((node) => `${node.title} (${node.type})`)"""
        )
        return nodes + self.page.evaluate(_WRONG_LINKS)

    def messages(self) -> list[str]:
        """The text of every dialog and alert that is open, such as the one about missing nodes."""
        return self.page.locator("[role=dialog]:visible, .p-toast-message:visible").all_inner_texts()

    def boxes(self) -> dict[str, list[tuple[str, list[float]]]]:
        """What is drawn on the canvas: of `nodes` and `groups` the title and x0, y0, x1, y1."""
        return self.page.evaluate(_BOXES)

    def show_all(self) -> None:
        """Bring the whole graph into view."""
        self.page.evaluate(
            """() => {
              const drawn = [...app.graph.nodes, ...app.graph.groups];
              const boxes = drawn.map((each) => each.boundingRect ?? each._bounding);
              const left = Math.min(...boxes.map((box) => box[0])), top = Math.min(...boxes.map((box) => box[1]));
              const right = Math.max(...boxes.map((box) => box[0] + box[2]));
              const bottom = Math.max(...boxes.map((box) => box[1] + box[3]));
              const { ds, canvas } = app.canvas, [width, height] = [canvas.clientWidth - 80, canvas.clientHeight - 120];
              ds.scale = Math.min(width / (right - left), height / (bottom - top));
              ds.offset = [80 / ds.scale - left, 70 / ds.scale - top];
              app.canvas.setDirty(true, true);
            }"""
        )

    def workflow(self) -> dict[str, Any]:
        """The graph as the page would save it now."""
        return self.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")

    def set_widgets(self, values: dict[str, Any]) -> None:
        """Set every widget of these names, whatever node of the pack or sampler it is on, in boxes too."""
        self.page.evaluate(
            """(values) => {
              const inside = (graph) =>
                graph.nodes.flatMap((node) => [node, ...(node.subgraph ? inside(node.subgraph) : [])]);
              for (const node of inside(app.graph))
                for (const widget of node.widgets ?? [])
                  if (widget.name in values) {
                    widget.value = values[widget.name];
                    widget.callback?.(widget.value);
                  }
            }""",
            values,
        )

    def enable(self, *kinds: str) -> None:
        """Have all nodes of these types run, those bypassed or muted too."""
        self.page.evaluate(
            "(kinds) => app.graph.nodes.forEach((node) => { if (kinds.includes(node.type)) node.mode = 0; })",
            list(kinds),
        )

    def settle(self) -> None:
        """Wait until nodes that are parts of the page have the size of what is in them."""
        boxes = None
        while boxes != (boxes := self.boxes()):
            self.page.wait_for_timeout(300)

    def replace(self, old: str, new: str) -> None:
        """Put a new node of type `new` in the place of the one of type `old`: its first output takes over the links."""
        self.page.evaluate(
            """([old, type]) => {
              const [from] = app.graph.findNodesByType(old);
              const to = LiteGraph.createNode(type);
              to.pos = [...from.pos];
              app.graph.add(to);
              for (const id of [...from.outputs[0].links]) {
                const link = app.graph.links.get(id);
                to.connect(0, app.graph.getNodeById(link.target_id), link.target_slot);
              }
              app.graph.remove(from);
            }""",
            [old, new],
        )

    def look_at(self, kind: str) -> None:
        """Bring the node of type `kind` into view: the page shows a node's pictures only there."""
        self.page.evaluate(
            """(kind) => {
              const [node] = app.graph.findNodesByType(kind);
              app.canvas.ds.scale = 1;
              app.canvas.centerOnNode(node);
              app.canvas.setDirty(true, true);
            }""",
            kind,
        )

    def run(self) -> str:
        """Press the page's Run button; returns the id of the queued run, or raises with what the page answers."""
        with self.page.expect_response(lambda response: response.url.endswith("/prompt")) as response:
            self.page.locator(_RUN).first.click()
        answer = response.value.json()
        if answer.get("node_errors") or not response.value.ok:  # of a graph that is wrong in part, the rest runs
            raise RuntimeError(f"The server refused the workflow: {answer}")
        return answer["prompt_id"]

    def pictures(self, kind: str) -> list[str]:
        """File names of the pictures that the node of type `kind` has in it, once all are loaded."""
        self.look_at(kind)
        find = """(kind) => {
          const [node] = app.graph.findNodesByType(kind);
          const shown = node.widgets.flatMap((widget) => [...(widget.element?.querySelectorAll("img") ?? [])]);
          return shown.every((image) => image.naturalWidth && image.getBoundingClientRect().width)
            && shown.map((image) => image.src.split("/").pop());
        }"""
        return self.page.wait_for_function(find, arg=kind).json_value()

    def cancel_while_sampling(self) -> None:
        """Wait until the run that was begun counts steps, then do what the page's cancel button does."""
        self.page.evaluate(
            """() => new Promise((resolve) => {
              app.api.addEventListener("progress", ({ detail }) => detail.value > 1 && resolve());
            })"""
        )
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Interrupt')")

    def wait_for_text(self, text: str, timeout: float = 30) -> str:
        """Wait until the page says `text`, opening what it offers to show of an error; returns all that it says."""
        details = self.page.get_by_test_id("error-overlay-see-errors")
        said = ""
        for _ in range(int(timeout)):
            if details.count() and details.first.is_visible():
                details.first.click()
            said = self.page.locator("body").inner_text()
            if text in said:
                return said
            self.page.wait_for_timeout(1000)
        raise TimeoutError(f"The page does not say '{text}' but: {said[:2000]}")

    def reads_without_scrolling(self, text: str) -> bool:
        """Whether what some node says under it begins with `text`, all of which is in view."""
        return self.page.evaluate(
            """(text) => {
              const cuts = (element) => getComputedStyle(element).overflowY !== "visible";
              const found = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
              while (found.nextNode()) {
                const words = found.currentNode, range = document.createRange();
                const place = words.parentElement.closest(".dom-widget, [data-node-id]");
                if (!place || !words.data.trimStart().startsWith(text)) continue;
                range.setStart(words, 0);
                range.setEnd(words, words.data.indexOf(text) + text.length);
                let box = words.parentElement;
                while (box !== place && !cuts(box)) box = box.parentElement;
                const read = range.getBoundingClientRect(), seen = box.getBoundingClientRect();
                if (read.height && seen.top - 1 <= read.top && read.bottom <= seen.bottom + 1) return true;
              }
              return false;
            }""",
            text,
        )

    def template_cards(self, pack: str) -> dict[str, int]:
        """Open the template browser at a pack; returns the names on its cards and the widths of their pictures."""
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.get_by_role("dialog").get_by_text(pack).first.click()
        cards = self.page.locator("[data-testid^='template-workflow-']")
        cards.first.wait_for()
        found = {}
        for card in cards.all():
            card.scroll_into_view_if_needed()
            picture = card.locator("img").first
            picture.wait_for()
            name = card.get_attribute("data-testid").removeprefix("template-workflow-")
            found[name] = picture.evaluate("(image) => image.decode().then(() => image.naturalWidth)")
        return found

    def open_template(self, pack: str, file: Path) -> None:
        """Click on a pack's workflow in the template browser, and wait until the page has loaded and placed it."""
        self.close_dialogs()
        self.page.evaluate("() => app.graph.clear()")
        self.template_cards(pack)
        self.page.get_by_test_id(f"template-workflow-{file.stem}").click()
        self._wait_for_graph(file)
        self.settle()

    def help_of(self, kind: str) -> "Help":
        """Select the node of type `kind` and press its information button; returns what the page then shows."""
        self.look_at(kind)
        self.page.evaluate("(kind) => app.canvas.selectNodes(app.graph.findNodesByType(kind))", kind)
        self.page.get_by_test_id("info-button").click()
        heading = self.page.get_by_role("heading", name="When to use it").first
        heading.wait_for()
        found = heading.evaluate(
            """async (heading) => {
              const page = heading.parentElement;
              const pictures = [...page.querySelectorAll("img")];
              await Promise.allSettled(pictures.map((picture) => picture.decode()));
              const wider = (each) => each.getBoundingClientRect().right > page.getBoundingClientRect().right + 1;
              return {
                pictures: pictures.map((picture) => [picture.src.split("/").pop(), picture.naturalWidth]),
                too_wide: [...page.querySelectorAll("table, img, pre")].filter(wider).map((each) => each.innerText),
              };
            }"""
        )
        return Help(self.page.locator("body").inner_text(), found["pictures"], found["too_wide"])

    def wait_for_video(self, timeout: float) -> dict[str, Any]:
        """Wait until a video plays in the page; returns its `width`, `height`, `seconds` and `url`."""
        video = self.page.locator("video:visible").first  # of several, those out of view are hidden
        video.wait_for(timeout=timeout * 1000)
        video.evaluate(
            """async (video) => {
              while (video.readyState < 2) await new Promise((resolve) => setTimeout(resolve, 50));
            }"""
        )
        return video.evaluate("v => ({ width: v.videoWidth, height: v.videoHeight, seconds: v.duration, url: v.src })")
