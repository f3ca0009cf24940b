// Shows the chosen person's photo on FantasyID Example Photo, before anything has run.
import { app } from "../../scripts/app.js";

const HEIGHT = 220; // px

app.registerExtension({
  name: "FantasyID.ExamplePhoto",
  nodeCreated(node) {
    if (node.comfyClass !== "FantasyIDExamplePhoto") return;
    const person = node.widgets.find((widget) => widget.name === "person");
    const frame = document.createElement("div"), photo = document.createElement("img");
    // Out of the flow: the node's size says how large the picture is, not the other way round.
    Object.assign(photo.style, { position: "absolute", inset: 0, width: "100%", height: "100%", objectFit: "contain" });
    Object.assign(frame.style, { position: "relative", width: "100%", height: "100%", minHeight: `${HEIGHT}px` });
    frame.append(photo);
    const show = () => {
      photo.src = new URL(`photos/${encodeURIComponent(person.value)}.jpg`, import.meta.url).href;
      photo.alt = person.value;
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
