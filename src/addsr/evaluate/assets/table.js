// The tables: columns of a dataset, their cells as means or as paired differences, sorting, marks.

const ASPECTS = [
  ["fidelity", "Fidelity"], ["realism", "Realism"], ["consistency", "Consistency"],
  ["description", "Description"], ["cost", "Speed and memory"],
];
const ARROWS = { higher: "↑", lower: "↓", one: "→1" };
const DIRECTIONS = {
  higher: "higher is better", lower: "lower is better", one: "nearest to 1 is best",
};
const direction = (better) => DIRECTIONS[better] || "describes, no better or worse";

/** How good a value is, as a number to maximise; null where there is no better. */
const merit = (better, value) => {
  if (value === null || value === undefined) return null;
  if (better === "higher") return value;
  if (better === "lower") return -value;
  return better === "one" ? -Math.abs(Math.log(Math.max(value, 1e-12))) : null;
};

const metricNamed = (name) => list(report.metrics).find((metric) => metric.name === name);
const methodNamed = (id) => list(report.methods).find((method) => method.id === id);
const digitsOf = (metric) => (Number.isInteger(metric.digits) ? metric.digits : 2);

/** { value, low, high, count } of a method on a dataset; value null where there is none.
 *
 * One image has no interval: resampling it gives one of no width, which would pass for certainty.
 */
const score = (dataset, method, metric) => {
  const found = at(report.scores, dataset, method, metric);
  if (found !== undefined && found !== null) {
    const ends = found.count < 2 ? [null, null] : [number(found.low), number(found.high)];
    return { value: number(found.mean), low: ends[0], high: ends[1], count: found.count };
  }
  const whole = at(report.set_scores, dataset, method, metric);
  if (whole !== null && typeof whole === "object") {
    return { value: number(whole.mean), low: number(whole.low), high: number(whole.high) };
  }
  return { value: number(whole), low: null, high: null };
};
const imageScore = (dataset, method, metric, image) =>
  number(at(report.scores, dataset, method, metric, "images", image));

/** Paired difference of `method` minus `reference`; null where the two were not compared. */
const difference = (dataset, metric, method, reference) => {
  for (const pair of list(at(report.paired, dataset, metric))) {
    const straight = pair.a === method && pair.b === reference;
    if (!straight && !(pair.a === reference && pair.b === method)) continue;
    const sign = straight ? 1 : -1;
    const turn = (value) => (number(value) === null ? null : sign * number(value));
    const ends = pair.count < 2 ? [null, null] : [turn(pair.low), turn(pair.high)];
    return {
      value: turn(pair.mean), count: pair.count,
      low: straight ? ends[0] : ends[1], high: straight ? ends[1] : ends[0],
    };
  }
  return null;
};
/** The same where only the two means are known; null where one of them is missing. */
const compared = (dataset, column, method, reference) => {
  const pair = difference(dataset, column.key, method.id, reference);
  if (pair && pair.value !== null) return pair;
  const mine = column.read(method).value, theirs = score(dataset, reference, column.key).value;
  if (mine === null || theirs === null || (mine === theirs && !isFinite_(mine))) return null;
  return { value: mine - theirs, low: null, high: null };
};
const excludesZero = (pair) => pair.low !== null && pair.high !== null && (pair.low > 0 || pair.high < 0);

/** On how many images `method` is better than `reference`, and of how many. */
const wins = (dataset, metric, method, reference) => {
  let better = 0, count = 0;
  const ours = at(report.scores, dataset, method, metric.name, "images");
  for (const image of names(ours)) {
    const mine = merit(metric.better, imageScore(dataset, method, metric.name, image));
    const theirs = merit(metric.better, imageScore(dataset, reference, metric.name, image));
    if (mine === null || theirs === null) continue;
    count += 1;
    if (mine > theirs) better += 1;
  }
  return { better, count };
};

/** The columns that a dataset has figures for, by aspect. */
const columnsOf = (dataset) => {
  const columns = list(report.metrics)
    .filter((metric) => list(report.methods).some((method) =>
      score(dataset, method.id, metric.name).value !== null))
    .map((metric) => ({
      key: metric.name, metric, title: metric.title || metric.name, unit: metric.unit,
      better: metric.better, aspect: metric.aspect, digits: digitsOf(metric),
      read: (method) => score(dataset, method.id, metric.name),
    }));
  const cost = (key, title, unit, better, field, show) => ({
    key, title, unit, better, aspect: "cost", show,
    read: (method) => ({ value: number(at(method, field)), low: null, high: null }),
  });
  columns.push(
    cost("cost seconds", "Time", "s/image", "lower", "seconds_per_image", brief),
    cost("cost rate", "Rate", "MP/s", "higher", "megapixels_per_second", brief),
    cost("cost memory", "Memory", "peak", "lower", "peak_memory_bytes", bytes),
  );
  return columns
    .filter((c) => c.metric || list(report.methods).some((method) => c.read(method).value !== null))
    .map((c) => ({ ...c, place: ASPECTS.findIndex(([key]) => key === c.aspect) }))
    .sort((a, b) => a.place - b.place);
};

/** Ids of the methods that are best in a column, and of those not told apart from the best. */
const marks = (dataset, column) => {
  const best = new Set(), close = new Set();
  const able = list(report.methods)
    .map((method) => [method.id, merit(column.better, column.read(method).value)])
    .filter(([, worth]) => worth !== null);
  if (able.length < 2) return { best, close };
  const top = Math.max(...able.map(([, worth]) => worth));
  able.filter(([, worth]) => worth === top).forEach(([id]) => best.add(id));
  if (!column.metric || best.size !== 1) return { best, close };
  const [first] = best;
  for (const [id] of able) {
    const pair = id === first ? null : difference(dataset, column.key, id, first);
    if (pair && pair.low !== null && !excludesZero(pair)) close.add(id);
  }
  return { best, close };
};

const interval = (low, high, digits, signed) =>
  el("span", { class: "interval" }, `${format(low, digits, signed)} … ${format(high, digits, signed)}`);

const meanCell = (column, method, marked, total) => {
  const { value, low, high, count } = column.read(method);
  if (value === null) return el("td", { class: "none" }, "–");
  const best = marked.best.has(method.id), close = marked.close.has(method.id);
  return el("td", { class: best ? "best" : close ? "close" : null },
    el("span", { class: "value" }, column.show ? column.show(value) : format(value, column.digits),
      best ? el("span", { class: "hidden-text" }, " (best)") : null,
      close ? el("span", { class: "hidden-text" }, " (not told apart from the best)") : null),
    low === null || high === null ? null : interval(low, high, column.digits),
    count !== undefined && total && count < total ? el("span", { class: "interval" }, `of ${count}`) : null);
};

const differenceCell = (dataset, column, method, reference) => {
  if (!column.metric) return meanCell(column, method, { best: new Set(), close: new Set() });
  if (method.id === reference) {
    const own = column.read(method);
    if (own.value === null) return el("td", { class: "none" }, "–");
    return el("td", { class: "own" }, el("span", { class: "value" }, format(own.value, column.digits)),
      el("span", { class: "interval" }, "reference"));
  }
  const pair = compared(dataset, column, method, reference);
  if (!pair) return el("td", { class: "none" }, "–");
  const known = pair.low !== null && pair.high !== null;
  const judged = column.better === "higher" || column.better === "lower";
  const up = judged && (pair.value > 0) === (column.better === "higher");
  const clear = known && excludesZero(pair);
  const [glyph, words, style] = !known ? ["", "no interval", "unknown"]
    : !clear ? ["≈", "the interval includes zero", "equal"]
    : !judged ? ["≠", "the interval excludes zero", "other"]
    : up ? ["▲", "better, the interval excludes zero", "better"]
    : ["▼", "worse, the interval excludes zero", "worse"];
  const won = judged ? wins(dataset, column.metric, method.id, reference) : { count: 0 };
  return el("td", { class: style },
    el("span", { class: "value" }, glyph ? el("span", { class: "glyph", "aria-hidden": "true" }, glyph) : null,
      format(pair.value, column.digits, true), el("span", { class: "hidden-text" }, ` (${words})`)),
    known ? interval(pair.low, pair.high, column.digits, true) : el("span", { class: "interval" }, "no interval"),
    won.count ? el("span", { class: "interval" }, `better on ${won.better}/${won.count}`) : null);
};

const methodHead = (method) => {
  const facts = [
    method.kind === "scores" ? "scores from elsewhere" : method.kind,
    method.steps ? plural(method.steps, "step") : null,
  ].filter(Boolean).join(" · ");
  return el("th", { scope: "row" },
    el("span", { class: `swatch hue-${hueOf(method.id)}`, "aria-hidden": "true" }),
    el("span", { class: "method" }, method.title || method.id),
    el("span", { class: "facts" }, facts));
};
const hueOf = (id) => Math.max(list(report.methods).findIndex((method) => method.id === id), 0) % 8;

/** The table of a dataset; `reference` "" shows means, else differences to that method. */
const drawTable = (dataset, columns, reference, sorting, sortable) => {
  const methods = [...list(report.methods)].filter((method) =>
    columns.some((column) => column.metric && column.read(method).value !== null));
  const shown = (column, method) => {
    const own = column.read(method).value;
    if (!reference || !column.metric || own === null) return own;
    return method.id === reference ? 0 : compared(dataset.name, column, method, reference)?.value ?? null;
  };
  const sorted = columns.find((column) => column.key === sorting.key);
  if (sorted) {
    // best first: by merit, where there is none from high to low; differences by their sign
    const rank = (method) => {
      const value = shown(sorted, method);
      if (value === null) return null;
      const by = reference && sorted.better === "one" ? null : merit(sorted.better, value);
      return (by ?? value) * (sorting.turned ? -1 : 1);
    };
    const empty = (method) => rank(method) === null;
    methods.sort((a, b) => empty(a) - empty(b) || (empty(a) ? 0 : rank(b) - rank(a)) || 0);
  } else if (sorting.key === "method") {
    const order = new Intl.Collator("en", { numeric: true });
    methods.sort((a, b) => order.compare(a.title || a.id, b.title || b.id) * (sorting.turned ? -1 : 1));
  }
  const head = (key, content, attributes = {}) => {
    const active = sorting.key === key;
    const low = active && ((sorted?.better === "lower") !== sorting.turned || (key === "method" && !sorting.turned));
    const state = !active ? "none" : low ? "ascending" : "descending";
    const arrow = !active ? "" : low ? " ▲" : " ▼";
    return el("th", { scope: "col", "aria-sort": sortable ? state : null, ...attributes },
      sortable
        ? el("button", { type: "button", class: "sort", "data-key": key, click: () => sortable(key) },
          content, el("span", { class: "arrow", "aria-hidden": "true" }, arrow))
        : content);
  };
  const groups = ASPECTS.map(([key, text]) => [text, columns.filter((c) => c.aspect === key).length])
    .concat([["Other", columns.filter((c) => c.place < 0).length]]).filter(([, count]) => count);
  if (columns.some((c) => c.place < 0)) groups.unshift(groups.pop());
  const total = list(dataset.images).length;
  const marked = columns.map((column) => marks(dataset.name, column));
  return el("table", { class: "scores" },
    el("caption", { class: "hidden-text" }, `Scores on ${dataset.name}`),
    el("thead", {},
      el("tr", { class: "groups" }, el("td", {}),
        groups.map(([text, count]) => el("th", { scope: "colgroup", colspan: count }, text))),
      el("tr", {}, head("method", "Method", { class: "corner" }), columns.map((column) => head(column.key, [
        el("span", { class: "name" }, column.title,
          column.metric && column.metric.verified === false ? el("sup", { title: "not verified here" }, "†") : null),
        el("span", { class: "unit" }, [column.unit, ARROWS[column.better]].filter(Boolean).join(" "),
          el("span", { class: "hidden-text" }, ` ${direction(column.better)}`)),
      ])))),
    el("tbody", {}, methods.map((method) => el("tr", {}, methodHead(method), columns.map((column, i) =>
      (reference ? differenceCell(dataset.name, column, method, reference)
        : meanCell(column, method, marked[i], column.metric ? total : 0)))))));
};
