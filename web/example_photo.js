// Shows the chosen person's photo on FantasyID Example Photo and who that is in words, before anything has run.
import { app } from "../../scripts/app.js";

const HEIGHT = 200, CAPTION = 20; // px
const file = (name) => new URL(`photos/${encodeURIComponent(name)}`, import.meta.url).href;
const words = fetch(file("people.json")).then((answer) => answer.json());

app.registerExtension({
  name: "FantasyID.ExamplePhoto",
  nodeCreated(node) {
    if (node.comfyClass !== "FantasyIDExamplePhoto") return;
    const person = node.widgets.find((widget) => widget.name === "person");
    const [frame, photo, caption] = ["figure", "img", "figcaption"].map((kind) => document.createElement(kind));
    // Out of the flow: the node's size says how large the picture is, not the other way round.
    const inside = { position: "absolute", left: 0, width: "100%" };
    Object.assign(photo.style, inside, { top: 0, height: `calc(100% - ${CAPTION}px)`, objectFit: "contain" });
    Object.assign(caption.style, inside, { bottom: 0, fontSize: "12px", textAlign: "center", opacity: 0.8 });
    Object.assign(frame.style, { position: "relative", width: "100%", height: "100%", minHeight: `${HEIGHT}px` });
    frame.style.margin = 0;
    frame.append(photo, caption);
    const show = async () => {
      photo.src = file(`${person.value}.jpg`);
      photo.alt = person.value;
      caption.textContent = (await words)[person.value] ?? "";
    };
    const { callback } = person;
    person.callback = function (...values) {
      const result = callback?.apply(this, values);
      show();
      return result;
    };
    const { onConfigure } = node;
    node.onConfigure = function (...values) {
      const result = onConfigure?.apply(this, values);
      show();
      return result;
    };
    const shown = node.addDOMWidget("photo", "photo", frame, { hideOnZoom: false, getMinHeight: () => HEIGHT });
    shown.serialize = false; // neither in saved workflows
    shown.options.serialize = false; // nor in what is run
    show();
  },
});
