// Shows the chosen person's photo on FantasyID Example Photo, before anything has run.
import { app } from "../../scripts/app.js";

const HEIGHT = 220; // px

app.registerExtension({
  name: "FantasyID.ExamplePhoto",
  nodeCreated(node) {
    if (node.comfyClass !== "FantasyIDExamplePhoto") return;
    const person = node.widgets.find((widget) => widget.name === "person");
    const photo = document.createElement("img");
    Object.assign(photo.style, { width: "100%", height: "100%", minHeight: `${HEIGHT}px`, objectFit: "contain" });
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
    node.addDOMWidget("photo", "photo", photo, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => HEIGHT,
    });
    show();
  },
});
