// Canvases that show the same part of several pictures: one view, moved by wheel, drag, pinch and
// keys, drawn in the device's own pixels. 100 % is one picture pixel on one device pixel.

const PIXELATED_FROM = 2; // from 200 % on pixels are squares, so that nothing is invented
const STEPS = [0.125, 0.25, 0.33, 0.5, 0.67, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32];

/** Catmull-Rom weights of the four neighbours of a position `t` after the second. */
const cubic = (t) => [
  ((-0.5 * t + 1) * t - 0.5) * t, (1.5 * t - 2.5) * t * t + 1,
  ((-1.5 * t + 2) * t + 0.5) * t, (0.5 * t - 0.5) * t * t,
];

/** A canvas with `image` enlarged by bicubic interpolation to `width` x `height`. */
const enlarge = (image, width, height) => {
  const w = image.naturalWidth, h = image.naturalHeight;
  const source = el("canvas", { width: w, height: h }).getContext("2d", { willReadFrequently: true });
  source.drawImage(image, 0, 0);
  const pixels = source.getImageData(0, 0, w, h).data;
  const taps = (size, into) => Array.from({ length: into }, (_, i) => {
    const centre = (i + 0.5) * size / into - 0.5;
    const first = Math.floor(centre);
    const place = (k) => Math.min(Math.max(first + k, 0), size - 1);
    return { at: [place(-1), place(0), place(1), place(2)], weight: cubic(centre - first) };
  });
  const across = taps(w, width), down = taps(h, height);
  const rows = new Float32Array(width * h * 3);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < width; x++) {
      const { at: where, weight } = across[x];
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let k = 0; k < 4; k++) sum += weight[k] * pixels[(y * w + where[k]) * 4 + c];
        rows[(y * width + x) * 3 + c] = sum;
      }
    }
  }
  const canvas = el("canvas", { width, height });
  const target = canvas.getContext("2d");
  const result = target.createImageData(width, height);
  for (let y = 0; y < height; y++) {
    const { at: where, weight } = down[y];
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let k = 0; k < 4; k++) sum += weight[k] * rows[(where[k] * width + x) * 3 + c];
        result.data[(y * width + x) * 4 + c] = Math.round(sum);
      }
      result.data[(y * width + x) * 4 + 3] = 255;
    }
  }
  target.putImageData(result, 0, 0);
  return canvas;
};

/** One view of pictures of the same scene.
 *
 * `panes` are { canvas, layers }; a layer is { source, area } with the area the source covers in
 * the frame's pixels; of two layers the second shows right of the split. `frame` is the part of
 * the scene that there is: { x, y, width, height }.
 */
class Stage {
  constructor(changed = () => {}) {
    this.panes = [];
    this.frame = { x: 0, y: 0, width: 1, height: 1 };
    this.view = { zoom: 1, x: 0.5, y: 0.5 }; // device pixels per frame pixel, and the centre
    this.fitted = true;
    this.split = 0.5;
    this.changed = changed;
    this.pointers = new Map();
    this.observer = new ResizeObserver(() => this.resize());
  }

  /** Shows `panes`; the view stays where it is. */
  setPanes(panes) {
    this.observer.disconnect();
    this.panes = panes;
    for (const pane of panes) {
      this.observer.observe(pane.canvas);
      if (!pane.canvas.dataset.listens) this.listen(pane.canvas);
    }
    this.resize();
  }

  /** Size of the smallest pane in device pixels. */
  get size() {
    const least = (side) => Math.max(Math.min(...this.panes.map(({ canvas }) => canvas[side])), 1);
    return this.panes.length ? { width: least("width"), height: least("height") } : { width: 1, height: 1 };
  }

  resize() {
    for (const { canvas } of this.panes) {
      const ratio = window.devicePixelRatio || 1;
      const width = Math.max(Math.round(canvas.clientWidth * ratio), 1);
      const height = Math.max(Math.round(canvas.clientHeight * ratio), 1);
      if (canvas.width !== width) canvas.width = width;
      if (canvas.height !== height) canvas.height = height;
    }
    if (this.fitted) this.fit();
    else this.move(0, 0);
  }

  get fitZoom() {
    const { width, height } = this.size;
    return Math.min(width / this.frame.width, height / this.frame.height);
  }

  fit() {
    this.fitted = true;
    this.view.zoom = this.fitZoom;
    this.move(0, 0);
  }

  /** Zooms to `zoom` so that the point (x, y) device pixels from the middle of a pane stays. */
  zoomTo(zoom, x = 0, y = 0) {
    const least = Math.min(this.fitZoom, 1) / 2;
    const next = Math.min(Math.max(zoom, least), STEPS[STEPS.length - 1]);
    const gain = 1 / this.view.zoom - 1 / next;
    this.view.x += x * gain;
    this.view.y += y * gain;
    this.view.zoom = next;
    this.fitted = false;
    this.move(0, 0);
  }

  step(direction) {
    const near = this.view.zoom * (direction > 0 ? 1.001 : 0.999);
    const next = direction > 0 ? STEPS.find((z) => z > near) : STEPS.findLast((z) => z < near);
    if (next) this.zoomTo(next);
  }

  /** Moves the view by device pixels; what fits is centred, the rest stays inside its edges. */
  move(dx, dy) {
    const { view, frame } = this;
    const keep = (centre, start, length, pane) => {
      const half = pane / view.zoom / 2;
      if (half * 2 >= length) return start + length / 2;
      return Math.min(Math.max(centre, start + half), start + length - half);
    };
    view.x = keep(view.x + dx / view.zoom, frame.x, frame.width, this.size.width);
    view.y = keep(view.y + dy / view.zoom, frame.y, frame.height, this.size.height);
    this.draw();
  }

  draw() {
    this.panes.forEach((pane) => this.drawPane(pane));
    this.changed(this);
  }

  drawPane({ canvas, layers }) {
    const context = canvas.getContext("2d");
    const { view, frame } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    // whole device pixels for the origin: at 100 % every pixel is exactly one
    const left = Math.round(canvas.width / 2 - view.x * view.zoom);
    const top = Math.round(canvas.height / 2 - view.y * view.zoom);
    layers.forEach((layer, i) => {
      if (!layer?.source) return;
      const { source, area } = layer;
      context.save();
      context.beginPath();
      const cut = layers.length > 1 ? Math.round(canvas.width * this.split) : 0;
      if (layers.length > 1) {
        context.rect(i ? cut : 0, 0, i ? canvas.width - cut : cut, canvas.height);
        context.clip();
        context.beginPath();
      }
      context.rect(left + frame.x * view.zoom, top + frame.y * view.zoom,
        frame.width * view.zoom, frame.height * view.zoom);
      context.clip();
      const scale = view.zoom * area.width / (source.naturalWidth || source.width);
      context.imageSmoothingEnabled = scale < PIXELATED_FROM;
      context.imageSmoothingQuality = "high";
      context.drawImage(source, left + area.x * view.zoom, top + area.y * view.zoom,
        area.width * view.zoom, area.height * view.zoom);
      context.restore();
    });
    if (layers.length > 1) this.drawSplit(context, Math.round(canvas.width * this.split), canvas.height);
    canvas.dataset.pixelated = String(view.zoom >= PIXELATED_FROM);
  }

  /** A line with a grip, dark and light so that it shows on every picture. */
  drawSplit(context, x, height) {
    const unit = window.devicePixelRatio || 1;
    for (const [colour, width] of [["#000a", 4], ["#fff", 2]]) {
      context.fillStyle = context.strokeStyle = colour;
      context.fillRect(x - width * unit / 2, 0, width * unit, height);
      context.lineWidth = width * unit;
      context.beginPath();
      context.arc(x, height / 2, 13 * unit, 0, 2 * Math.PI);
      context.stroke();
    }
    context.fillStyle = "#fffc";
    context.fill();
    context.fillStyle = "#222";
    for (const side of [-1, 1]) {
      context.beginPath();
      context.moveTo(x + side * 9 * unit, height / 2);
      context.lineTo(x + side * 4 * unit, height / 2 - 4.5 * unit);
      context.lineTo(x + side * 4 * unit, height / 2 + 4.5 * unit);
      context.fill();
    }
  }

  /** Pointer position in device pixels from the middle of its canvas. */
  static place(event, canvas) {
    const box = canvas.getBoundingClientRect();
    return {
      x: (event.clientX - box.left - box.width / 2) * canvas.width / box.width,
      y: (event.clientY - box.top - box.height / 2) * canvas.height / box.height,
    };
  }

  listen(canvas) {
    canvas.dataset.listens = "yes";
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const { x, y } = Stage.place(event, canvas);
      const lines = event.deltaMode === 1 ? 30 : 1;
      this.zoomTo(this.view.zoom * Math.exp(-event.deltaY * lines * 0.002), x, y);
    }, { passive: false });
    canvas.addEventListener("dblclick", (event) => {
      const { x, y } = Stage.place(event, canvas);
      if (this.fitted) this.zoomTo(Math.max(2, this.view.zoom * 2), x, y);
      else this.fit();
    });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button > 0) return;
      canvas.setPointerCapture(event.pointerId);
      const place = Stage.place(event, canvas);
      const pane = this.panes.find((one) => one.canvas === canvas);
      const near = 24 * (window.devicePixelRatio || 1);
      const grips = pane?.layers.length > 1 && this.pointers.size === 0 &&
        Math.abs(place.x - canvas.width * (this.split - 0.5)) < near;
      this.pointers.set(event.pointerId, { ...place, grips });
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = this.pointers.get(event.pointerId);
      if (!before) return;
      const now = Stage.place(event, canvas);
      const others = [...this.pointers.entries()].filter(([id]) => id !== event.pointerId);
      if (before.grips) this.setSplit(now.x / canvas.width + 0.5);
      else if (others.length === 0) {
        if (!this.fitted || this.view.zoom > this.fitZoom) this.move(before.x - now.x, before.y - now.y);
      } else {
        const [, other] = others[0];
        const reach = (p) => Math.max(Math.hypot(p.x - other.x, p.y - other.y), 1);
        this.zoomTo(this.view.zoom * reach(now) / reach(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
        this.move((before.x - now.x) / 2, (before.y - now.y) / 2);
      }
      this.pointers.set(event.pointerId, { ...now, grips: before.grips });
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
  }

  setSplit(share) {
    this.split = Math.min(Math.max(share, 0), 1);
    this.draw();
  }

  /** Acts on a key that zooms or moves; says whether it did. `arrows` false leaves them alone. */
  key(event, arrows = true) {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    const stride = Math.round(Math.min(this.size.width, this.size.height) / 8);
    const moves = {
      ArrowLeft: [-stride, 0], ArrowRight: [stride, 0], ArrowUp: [0, -stride], ArrowDown: [0, stride],
    };
    if (event.key === "+" || event.key === "=") this.step(1);
    else if (event.key === "-" || event.key === "_") this.step(-1);
    else if (event.key === "0") this.fit();
    else if (/^[1248]$/.test(event.key)) this.zoomTo(Number(event.key));
    else if (arrows && moves[event.key]) this.move(...moves[event.key]);
    else return false;
    return true;
  }
}

/** Decodes base64 WebP into an image that can be drawn. */
const decode = (text) => new Promise((resolve, reject) => {
  const image = new Image();
  image.addEventListener("load", () => resolve(image));
  image.addEventListener("error", () => reject(new Error("a picture in this page is damaged")));
  image.src = `data:image/webp;base64,${text}`;
});
