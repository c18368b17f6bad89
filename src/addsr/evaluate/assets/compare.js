// Pictures of one scene: two under a slider, or all side by side, always at the same place.

const data = readBlock("compare-data");
const pictures = data.pictures;
const [width, height] = data.frame;
const area = { x: 0, y: 0, width, height };
const images = [];
const state = { mode: "slider", left: 0, right: pictures.length - 1, blink: false };

const zoomed = el("output", { class: "zoom", "aria-live": "off" });
const slider = el("input", { type: "range", id: "split", min: 0, max: 1000, value: 500,
  "aria-label": "Position of the split", input: () => stage.setSplit(Number(slider.value) / 1000) });
const panes = el("div", { id: "panes" });
const tools = el("div", { class: "bar" });
const stage = new Stage(({ view, split }) => {
  zoomed.textContent = `${Math.round(view.zoom * 100)} %`;
  slider.value = String(Math.round(split * 1000));
});

const layer = (i) => ({ source: images[i], area });
const sizeOf = ({ size }) => `${size[0]} × ${size[1]}`;
const tag = (i, side) => el("div", { class: `tag ${side}`, title: sizeOf(pictures[i]) }, pictures[i].title);
const canvas = (text) => el("canvas", { tabindex: 0, role: "img", "aria-label": text });

const show = () => {
  const { mode, left, right, blink } = state;
  panes.className = mode;
  if (mode === "slider") {
    const drawn = canvas(`${pictures[left].title} left, ${pictures[right].title} right of the split`);
    const shown = blink ? [left, left] : [left, right];
    panes.replaceChildren(el("div", { class: "pane" }, drawn, tag(shown[0], "left"), tag(shown[1], "right")));
    stage.setPanes([{ canvas: drawn, layers: shown.map(layer) }]);
  } else {
    const drawn = pictures.map(({ title }) => canvas(title));
    panes.replaceChildren(...drawn.map((one, i) => el("div", { class: "pane" }, one, tag(i, "left"))));
    stage.setPanes(drawn.map((one, i) => ({ canvas: one, layers: [layer(i)] })));
  }
};

const build = () => {
  const options = pictures.map(({ title }, i) => [String(i), title]);
  const pick = (label, key) => choice(label, options, String(state[key]), (value) => {
    state[key] = Number(value);
    show();
  });
  const tool = (text, title, click, id) => el("button", { type: "button", title, "aria-label": title, click, id }, text);
  const lists = el("div", { class: "switcher", id: "lists" }, pick("Left", "left"), pick("Right", "right"), slider);
  tools.append(
    switcher("View", [["slider", "Slider"], ["side", "Side by side"]], state.mode, (mode) => {
      state.mode = mode;
      lists.hidden = mode !== "slider";
      show();
    }),
    lists, el("span", { class: "gap" }),
    el("div", { class: "switcher" }, tool("−", "Smaller (-)", () => stage.step(-1), "smaller"), zoomed,
      tool("+", "Larger (+)", () => stage.step(1), "larger"), tool("Fit", "Fit into the window (0)", () => stage.fit(), "fit"),
      tool("1:1", "One pixel on one pixel (1)", () => stage.zoomTo(1), "one")));
  byId("compare").append(tools, panes, el("p", { class: "foot muted small" },
    `Drag the line; the wheel, two fingers or + and − zoom, dragging and arrows move; hold B for the left picture alone. ${width} × ${height}, stored as ${data.packing}, ${data.made_by}.`));
};

const setBlink = (on) => {
  if (state.blink === on || state.mode !== "slider") return;
  state.blink = on;
  show();
};

document.addEventListener("keydown", (event) => {
  if (event.target instanceof HTMLSelectElement || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === slider && /^(Arrow|Home|End|Page)/.test(event.key)) return;
  if (event.key.toLowerCase() === "b") setBlink(true);
  else if (!stage.key(event)) return;
  event.preventDefault();
});
document.addEventListener("keyup", (event) => { if (event.key.toLowerCase() === "b") setBlink(false); });
window.addEventListener("blur", () => setBlink(false)); // the key comes up elsewhere

const start = async () => {
  build();
  stage.frame = area;
  images.push(...await Promise.all(pictures.map((_, i) => decode(readBlock(`picture-${i}`)))));
  show();
  document.documentElement.dataset.ready = "yes";
};
start().catch((error) => {
  byId("compare").replaceChildren(el("p", { class: "notice" }, `${error.message}; make it again.`));
  document.documentElement.dataset.ready = "yes";
});
