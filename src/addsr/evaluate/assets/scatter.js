// The scatter: one point a method, better always towards the upper right, labels kept apart.

const FONT = 13;

/** Round numbers that divide [low, high] into about `count` parts. */
const ticks = (low, high, count) => {
  const raw = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return { values: found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (step / power === 2.5 ? 1 : 0)) };
};

/** Where each label goes: boxes { x, y, width, height, far } that avoid points, bars, each other.
 *
 * `points` are { x, y, width, height, obstacles } with the size of the label. Every label tries
 * places around its point at growing distance; the cheapest in three rounds is kept.
 */
const placeLabels = (points, bounds) => {
  const overlap = (a, b) =>
    Math.max(0, Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x)) *
    Math.max(0, Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y));
  const pad = (box, by) => ({
    x: box.x - by, y: box.y - by, width: box.width + 2 * by, height: box.height + 2 * by,
  });
  const dots = points.map(({ x, y }) => ({ x: x - 6, y: y - 6, width: 12, height: 12 }));
  const bars = points.flatMap(({ obstacles }) => obstacles);
  const candidates = points.map(({ x, y, width, height }) => {
    const found = [];
    const add = (left, top, reach, bias) => {
      const box = { x: left, y: top, width, height, far: reach > 20 };
      let cost = (width * height - overlap(box, bounds)) * 50 + reach + bias;
      for (const dot of dots) cost += overlap(box, dot) * 5;
      for (const bar of bars) cost += overlap(box, bar);
      found.push({ box, cost });
    };
    // beside the point between its bars: upper right reads best
    for (const [right, down, bias] of [[1, 0, 0], [1, 1, 1], [0, 0, 2], [0, 1, 3]]) {
      add(right ? x + 7 : x - 7 - width, down ? y + 3 : y - 3 - height, 7, bias);
    }
    for (const reach of [9, 16, 26, 40, 58, 80, 110]) {
      for (let turn = 0; turn < 16; turn++) {
        const angle = turn * Math.PI / 8;
        const cx = x + Math.cos(angle) * (reach + width / 2);
        const cy = y + Math.sin(angle) * (reach + height / 2);
        add(cx - width / 2, cy - height / 2, reach, Math.cos(angle) > 0.9 ? 0 : 4);
      }
    }
    return found;
  });
  const chosen = candidates.map((found) => found[0].box);
  for (let round = 0; round < 4; round++) {
    points.forEach((_, i) => {
      let best = Infinity;
      for (const { box, cost } of candidates[i]) {
        let sum = cost;
        chosen.forEach((other, k) => {
          if (k !== i && (round > 0 || k < i)) sum += overlap(pad(box, 2), other) * 100;
        });
        if (sum < best) { best = sum; chosen[i] = box; }
      }
    });
  }
  return chosen;
};

const axisOf = (column, readings) => {
  const log = column.aspect === "cost" && readings.every(({ value }) => value > 0);
  const map = (value) => (log ? Math.log10(value) : value);
  const ends = readings.flatMap(({ value, low, high }) => [value, low, high]).filter(isFinite_).map(map);
  if (column.better === "one") ends.push(1);
  let low = Math.min(...ends), high = Math.max(...ends);
  const room = (high - low || Math.abs(high) || 1) * 0.1;
  low -= room; high += room;
  return { column, log, map, low, high, reversed: column.better === "lower" };
};

const axisLabel = ({ column, reversed, log }) => [
  column.title, column.unit ? ` (${column.unit})` : "", log ? ", logarithmic" : "",
  column.better === "none" ? "" : ` \u2014 ${reversed ? "lower is better, axis turned round" : direction(column.better)}`,
].join("");

/** The figure of two columns of a dataset, `width` pixels wide. */
const drawScatter = (dataset, across, up, width) => {
  const rows = list(report.methods)
    .map((method) => ({ method, x: across.read(method), y: up.read(method) }))
    .filter(({ x, y }) => isFinite_(x.value) && isFinite_(y.value));
  if (!rows.length) return el("p", { class: "muted" }, "No method has finite figures for both.");
  const narrow = width < 560;
  const height = Math.round(narrow ? width * 1.05 : Math.min(width * 0.56, 520));
  const box = { left: 54, right: width - 14, top: 14, bottom: height - 52 };
  const xAxis = axisOf(across, rows.map(({ x }) => x)), yAxis = axisOf(up, rows.map(({ y }) => y));
  const scale = (axis, from, to) => (value) => {
    const share = (axis.map(value) - axis.low) / (axis.high - axis.low);
    return from + (to - from) * (axis.reversed ? 1 - share : share);
  };
  const px = scale(xAxis, box.left, box.right), py = scale(yAxis, box.bottom, box.top);
  const parts = [];
  const axis = (one, position, count, draw) => {
    const { values, digits } = one.log
      ? { values: Array.from({ length: Math.floor(one.high) - Math.ceil(one.low) + 1 },
        (_, i) => 10 ** (Math.ceil(one.low) + i)), digits: null }
      : ticks(one.low, one.high, count);
    values.forEach((value) => parts.push(...draw(position(value),
      digits === null ? (one.column.show || brief)(value) : format(value, digits))));
  };
  axis(xAxis, px, narrow ? 4 : 7, (x, text) => [
    svg("line", { class: "grid", x1: x, x2: x, y1: box.top, y2: box.bottom }),
    svg("text", { class: "tick", x, y: box.bottom + 18, "text-anchor": "middle" }, text)]);
  axis(yAxis, py, 6, (y, text) => [
    svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y, y2: y }),
    svg("text", { class: "tick", x: box.left - 8, y: y + 4, "text-anchor": "end" }, text)]);
  if (across.better === "one") parts.push(svg("line", { class: "goal", x1: px(1), x2: px(1), y1: box.top, y2: box.bottom }));
  if (up.better === "one") parts.push(svg("line", { class: "goal", x1: box.left, x2: box.right, y1: py(1), y2: py(1) }));
  parts.push(svg("rect", { class: "frame", x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top }),
    svg("text", { class: "axis", x: (box.left + box.right) / 2, y: height - 12, "text-anchor": "middle" }, axisLabel(xAxis)),
    svg("text", { class: "axis", x: 0, y: 0, "text-anchor": "middle", transform: `translate(14 ${(box.top + box.bottom) / 2}) rotate(-90)` }, axisLabel(yAxis)));
  // one model at several numbers of steps is one line
  const families = new Map();
  for (const row of rows) {
    if (row.method.sha256 && row.method.steps) {
      families.set(row.method.sha256, [...(families.get(row.method.sha256) || []), row]);
    }
  }
  for (const family of families.values()) {
    if (new Set(family.map(({ method }) => method.steps)).size !== family.length) continue;
    family.sort((a, b) => a.method.steps - b.method.steps);
    if (family.length > 1) {
      parts.push(svg("polyline", { class: "family", points: family.map(({ x, y }) => `${px(x.value)},${py(y.value)}`).join(" ") }));
    }
  }
  const pen = el("canvas").getContext("2d");
  pen.font = `600 ${FONT}px ${getComputedStyle(document.body).fontFamily}`;
  const points = rows.map(({ method, x, y }) => {
    const text = method.title || method.id;
    let label = text;
    while (pen.measureText(label).width > (box.right - box.left) * 0.6 && label.length > 4) {
      label = `${label.slice(0, -2)}…`.replace("……", "…");
    }
    const place = { x: px(x.value), y: py(y.value) };
    const bars = [];
    if (isFinite_(x.low) && isFinite_(x.high)) bars.push([px(x.low), place.y, px(x.high), place.y]);
    if (isFinite_(y.low) && isFinite_(y.high)) bars.push([place.x, py(y.low), place.x, py(y.high)]);
    return {
      ...place, method, text, label, bars, width: pen.measureText(label).width, height: FONT + 3,
      about: `${text}: ${across.title} ${tell(across, x)}, ${up.title} ${tell(up, y)}`,
      obstacles: bars.map(([x1, y1, x2, y2]) => ({
        x: Math.min(x1, x2) - 1, y: Math.min(y1, y2) - 1, width: Math.abs(x2 - x1) + 2, height: Math.abs(y2 - y1) + 2,
      })),
    };
  });
  const labels = placeLabels(points, { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top });
  points.forEach((point, i) => {
    const label = labels[i], hue = `hue-${hueOf(point.method.id)}`;
    const nearest = {
      x: Math.min(Math.max(point.x, label.x), label.x + label.width),
      y: Math.min(Math.max(point.y, label.y), label.y + label.height),
    };
    parts.push(svg("g", { class: `point ${hue}` },
      svg("title", {}, point.about),
      point.bars.map(([x1, y1, x2, y2]) => svg("line", { class: "bar", x1, y1, x2, y2 })),
      label.far ? svg("line", { class: "leader", x1: point.x, y1: point.y, x2: nearest.x, y2: nearest.y }) : null,
      svg("circle", { cx: point.x, cy: point.y, r: 5.5, class: point.method.kind === "scores" ? "hollow" : null }),
      svg("text", { class: "label", x: label.x, y: label.y + FONT - 1 }, point.label)));
  });
  return svg("svg", {
    class: "scatter", role: "img", viewBox: `0 0 ${width} ${height}`, width, height,
    "aria-label": `${up.title} against ${across.title} on ${dataset.name}. ${points.map(({ about }) => about).join(". ")}.`,
  }, parts);
};

const tell = (column, { value, low, high }) => {
  const show = column.show || ((one) => format(one, column.digits));
  return low === null || high === null ? show(value) : `${show(value)} (${show(low)} to ${show(high)})`;
};
