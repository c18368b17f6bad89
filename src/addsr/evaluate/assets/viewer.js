// The viewer: pictures of one image side by side or split, all showing the same part.

const MOST_PANES = 4;
const ENLARGED = " bicubic"; // the input enlarged here; the space keeps it apart from methods' ids

const viewer = {
  stage: null, dataset: null, image: null, sources: [], shown: [], mode: "side", decoded: new Map(), ticket: 0,
  blink: false,

  /** Opens the dialog on an image with its reference, the method and what it is compared with. */
  open({ dataset, image, method, against }) {
    this.dataset = dataset;
    this.image = image;
    const able = this.options().map(([key]) => key);
    const wanted = [able.includes("hr") ? "hr" : ENLARGED, method, against].filter((key) => able.includes(key));
    for (const key of [...list(report.methods).map(({ id }) => id), ENLARGED, "lr"]) {
      if (wanted.length < 2 && able.includes(key) && !wanted.includes(key)) wanted.push(key);
    }
    this.sources = wanted;
    this.build();
    byId("viewer").showModal();
    this.stage.fitted = true;
    this.layout(true);
  },

  /** [key, words] of the pictures there are of the image. */
  options() {
    const texts = pictureTexts(this.dataset, this.image);
    const found = [];
    if (Object.hasOwn(texts, "hr")) found.push(["hr", "HR, the reference"]);
    if (Object.hasOwn(texts, "lr")) found.push(["lr", "LR, the input"], [ENLARGED, "LR enlarged (bicubic)"]);
    for (const { id, title } of list(report.methods)) {
      if (id !== "hr" && id !== "lr" && Object.hasOwn(texts, id)) found.push([id, title || id]);
    }
    return found;
  },

  build() {
    if (this.stage) return;
    this.stage = new Stage((stage) => this.told(stage));
    const tool = (label, title, act, extra = {}) =>
      el("button", { type: "button", title, "aria-label": title, click: act, ...extra }, label);
    this.zoom = el("output", { class: "zoom", "aria-live": "off" });
    this.title = el("div", { class: "viewer-title" });
    this.side = tool("Panes", "Every picture in a pane of its own", () => this.setMode("side"));
    this.swipe = tool("Swipe", "Two pictures with a split between them (S)", () => this.setMode("swipe"));
    this.add = tool("Add", "Add a picture", () => this.addPane());
    this.drop = tool("Remove", "Remove the last picture", () => this.dropPane());
    this.slider = el("input", {
      type: "range", min: 0, max: 1000, step: 5, "aria-label": "Split", class: "split",
      input: () => this.stage.setSplit(Number(this.slider.value) / 1000),
    });
    this.panes = el("div", { class: "panes" });
    this.note = el("p", { class: "viewer-note" });
    const dialog = byId("viewer");
    dialog.append(
      el("div", { class: "bar" },
        tool("‹", "Previous image (Page Up)", () => this.turn(-1), { class: "turn" }), this.title,
        tool("›", "Next image (Page Down)", () => this.turn(1), { class: "turn" }),
        el("span", { class: "gap" }),
        el("div", { class: "switcher" }, this.side, this.swipe),
        el("div", { class: "switcher wide" }, this.add, this.drop),
        el("div", { class: "switcher" }, tool("−", "Smaller (-)", () => this.stage.step(-1)), this.zoom,
          tool("+", "Larger (+)", () => this.stage.step(1)),
          tool("Fit", "Fit into the window (0)", () => this.stage.fit()),
          tool("1:1", "One pixel on one pixel (1)", () => this.stage.zoomTo(1), { class: "wide" })),
        tool("Close", "Close (Escape)", () => dialog.close(), { class: "main" })),
      this.panes, this.slider, this.note);
    // not at the dialog: when the focused canvas is replaced, keys go to the body for a moment
    document.addEventListener("keydown", (event) => dialog.open && this.key(event));
    document.addEventListener("keyup", (event) => {
      if (event.key.toLowerCase() === "b") this.setBlink(false);
    });
    window.addEventListener("blur", () => this.setBlink(false)); // the key comes up elsewhere
    dialog.addEventListener("close", () => { this.setBlink(false); this.decoded.clear(); });
  },

  images() {
    return list(report.datasets.find(({ name }) => name === this.dataset)?.images)
      .filter((image) => pictureIndex(this.dataset, image));
  },

  turn(by) {
    const images = this.images();
    this.image = images[(images.indexOf(this.image) + by + images.length) % images.length];
    this.layout();
  },

  setMode(mode) {
    this.mode = mode;
    this.layout();
  },

  addPane() {
    const free = this.options().map(([key]) => key).filter((key) => !this.shown.includes(key));
    const next = free.find((key) => methodNamed(key)) ?? free[0]; // methods before what they are made from
    if (next !== undefined && this.sources.length < MOST_PANES) this.sources.push(next);
    this.mode = "side";
    this.layout();
  },

  dropPane() {
    if (this.sources.length > 1) this.sources.pop();
    this.layout();
  },

  /** Builds the panes for what is shown now and draws them as soon as the pictures are decoded. */
  async layout(opening = false) {
    const options = this.options();
    const known = (key) => options.some(([one]) => one === key);
    while (this.mode === "swipe" && this.sources.length < 2 && options.length) {
      this.sources.push((options.find(([key]) => !this.sources.includes(key)) || options[0])[0]);
    }
    // what this image lacks is asked for again on the next
    this.shown = this.sources.map((key) => (known(key) ? key : options[0]?.[0]));
    const split = this.mode === "swipe";
    this.side.setAttribute("aria-pressed", String(!split));
    this.swipe.setAttribute("aria-pressed", String(split));
    this.add.disabled = split || this.sources.length >= MOST_PANES || this.sources.length >= options.length;
    this.drop.disabled = split || this.sources.length < 2;
    this.slider.hidden = !split;
    const entry = pictureIndex(this.dataset, this.image);
    const images = this.images();
    this.title.replaceChildren(el("strong", {}, this.image),
      el("span", {}, `${this.dataset}, ${images.indexOf(this.image) + 1} of ${images.length}`));
    const [left, top, right, bottom] = entry.box;
    const cut = right - left < entry.size[0] || bottom - top < entry.size[1];
    const heads = this.shown.map((key, i) => this.paneHead(key, i, options));
    const shown = split ? [0] : this.sources.map((_, i) => i);
    const active = document.activeElement;
    const focus = active?.dataset?.pane;
    const drawn = opening || (this.canvases || []).includes(active);
    this.canvases = shown.map(() => el("canvas", { tabindex: 0, role: "img" }));
    this.panes.className = `panes count-${shown.length}`;
    this.panes.replaceChildren(...shown.map((i) => el("div", { class: "pane" },
      split ? el("div", { class: "pane-heads" }, heads[0], heads[1]) : heads[i], this.canvases[i])));
    if (drawn) this.canvases[0].focus();
    else if (focus !== undefined) this.panes.querySelector(`select[data-pane="${focus}"]`)?.focus();
    this.note.replaceChildren(
      cut ? `Pixels ${left}–${right} by ${top}–${bottom} of ${entry.size[0]} × ${entry.size[1]}. ` : `${entry.size[0]} × ${entry.size[1]} pixels. `,
      `Shown from ${pictures.packing}. `, ...this.originals(),
      el("span", { class: "keys" }, el("kbd", {}, "+"), " ", el("kbd", {}, "-"), " zoom, ", el("kbd", {}, "0"), " fit, arrows move, ",
        el("kbd", {}, "S"), " swipe, ", "hold ", el("kbd", {}, "B"), " to see the first picture everywhere"));
    const ticket = ++this.ticket;
    const layers = await Promise.all(this.shown.map((key) => this.layer(key).catch(() => null)));
    if (ticket !== this.ticket) return; // another image was chosen meanwhile
    this.layers = layers;
    this.stage.frame = { x: left, y: top, width: right - left, height: bottom - top };
    this.label(options);
    this.show();
  },

  label(options) {
    const words = (key) => options.find(([one]) => one === key)?.[1] || key;
    this.canvases.forEach((canvas, i) => canvas.setAttribute("aria-label", this.mode === "swipe"
      ? `${this.image}: left ${words(this.shown[0])}, right ${words(this.shown[1])}`
      : `${this.image}: ${words(this.shown[i])}`));
  },

  show() {
    const layers = this.blink ? this.layers.map(() => this.layers[0]) : this.layers;
    this.stage.setPanes(this.mode === "swipe"
      ? [{ canvas: this.canvases[0], layers: layers.slice(0, 2) }]
      : this.canvases.map((canvas, i) => ({ canvas, layers: [layers[i]] })));
  },

  paneHead(key, i, options) {
    const select = el("select", { "data-pane": i, "aria-label": `Picture ${i + 1}`, change: () => {
      this.sources[i] = select.value;
      this.layout();
    } });
    for (const [value, text] of options) {
      const option = el("option", {}, text);
      option.value = value;
      option.selected = value === key;
      select.append(option);
    }
    const order = [gallery.metric, ...list(report.metrics).map(({ name }) => name)];
    const figures = [...new Set(order)].map(metricNamed)
      .map((metric) => metric && [metric, imageScore(this.dataset, key, metric.name, this.image)])
      .filter((pair) => pair && pair[1] !== null).slice(0, 4);
    return el("div", { class: "pane-head" }, select, el("span", { class: "pane-figures" },
      figures.map(([metric, value]) => el("span", {}, `${metric.title || metric.name} ${format(value, digitsOf(metric))}`))));
  },

  /** Links to the files that the figures were measured on, where they lie beside the page. */
  originals() {
    const files = at(report.pictures, this.dataset, this.image);
    const links = this.shown
      .filter((key) => typeof at(files, key) === "string" && /^[^/\\:]/.test(files[key]) && !/(^|[/\\])\.\.([/\\]|$)|^[a-z]+:/i.test(files[key]))
      .map((key) => el("a", { href: `./${files[key].split("/").map(encodeName).join("/")}`, target: "_blank", rel: "noopener" }, key));
    return links.length ? ["Original files, if the report's folder is here: ", ...links.flatMap((link, i) => (i ? [", ", link] : [link])), ". "] : [];
  },

  /** What a pane draws: the decoded picture and the area of the scene it covers. */
  async layer(key) {
    const entry = pictureIndex(this.dataset, this.image);
    const own = key === ENLARGED ? "lr" : key;
    const area = at(entry.areas, own) || entry.box;
    const [left, top, right, bottom] = area;
    const name = `${entry.block} ${key}`;
    if (!this.decoded.has(name)) {
      if (this.decoded.size > 40) this.decoded.delete(this.decoded.keys().next().value);
      let source = await decode(pictureTexts(this.dataset, this.image)[own]);
      if (key === ENLARGED) source = enlarge(source, right - left, bottom - top);
      this.decoded.set(name, source);
    }
    return { source: this.decoded.get(name), area: { x: left, y: top, width: right - left, height: bottom - top } };
  },

  setBlink(on) {
    if (this.blink === on || !this.layers) return;
    this.blink = on;
    this.panes.classList.toggle("blinks", on);
    this.show();
  },

  key(event) {
    // a list takes letters, the split takes arrows
    const typing = event.target instanceof HTMLSelectElement ||
      (event.target instanceof HTMLInputElement && /^(Arrow|Home|End)/.test(event.key));
    const letter = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "PageUp" || event.key === "[") this.turn(-1);
    else if (event.key === "PageDown" || event.key === "]") this.turn(1);
    else if (typing) return;
    else if (letter === "s") this.setMode(this.mode === "swipe" ? "side" : "swipe");
    else if (letter === "b") this.setBlink(true);
    else if (!this.stage.key(event)) return;
    event.preventDefault();
  },

  told(stage) {
    this.zoom.textContent = `${Math.round(stage.view.zoom * 100)} %`;
    this.slider.value = String(Math.round(stage.split * 1000));
  },
};

/** A part of a path for a link; what no encoding can write becomes a replacement sign. */
const encodeName = (part) => encodeURIComponent(part.toWellFormed ? part.toWellFormed() : part);
