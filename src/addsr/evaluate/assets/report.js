// The page: reads the report from its data blocks and fills the sections.

const report = readBlock("report-data");
const pictures = readBlock("picture-index");
const scores = { reference: "", hidden: new Set(), sorting: new Map() };
const trade = { dataset: null, across: null, up: null };
const datasetsShown = () => list(report.datasets).filter(({ name }) => columnsOf(name).some((c) => c.metric));

const drawHeader = () => {
  const protocol = report.protocol || {}, made = report.made_by || {};
  const cropOf = (name) => {
    const crop = list(protocol.datasets).find((one) => at(one, "name") === name)?.crop;
    return crop ? `, cut to the central ${crop} × ${crop}` : "";
  };
  const images = list(report.datasets).reduce((sum, one) => sum + list(one.images).length, 0);
  const facts = [
    ["Protocol", [protocol.name, protocol.source].filter(Boolean).join(", ")],
    ["Scale", protocol.scale ? `×${protocol.scale}` : ""],
    ["Border", isFinite_(protocol.border) ? `${protocol.border} pixels cut off each side before fidelity is measured` : ""],
    ["Luma", { bt601: "Y of BT.601, 16 to 235", yiq: "Y of YIQ, 0 to 255" }[protocol.luma] || protocol.luma],
    ["Images", list(report.datasets).map((one) => `${one.name}: ${list(one.images).length}${
      one.has_hr ? "" : ", no HR"}${one.has_lr ? "" : ", no LR"}${cropOf(one.name)}`).join("; ")],
    ["Made with", [made.addsr && `addsr ${made.addsr}`, made.torch && `torch ${made.torch}`, made.python && `Python ${made.python}`,
      made.platform, made.device, made.threads && plural(made.threads, "thread")].filter(Boolean).join(", ")],
  ].filter(([, text]) => text);
  const download = () => save("report.json", blockText("report-data"));
  byId("top").replaceChildren(
    el("p", { class: "kicker" }, "addsr evaluate", report.date ? el("time", { datetime: report.date }, when(report.date)) : null),
    el("h1", {}, protocol.title || protocol.name || "Evaluation"),
    el("p", { class: "lead" }, `${plural(list(report.methods).length, "method")} on ${plural(images, "image")} of ${
      plural(list(report.datasets).length, "dataset")}.`),
    el("dl", { class: "facts-list" }, facts.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text)))),
    report.command ? el("pre", { class: "command", tabindex: 0, "aria-label": "Command" }, el("code", {}, report.command)) : null,
    el("nav", { "aria-label": "Sections" },
      [...document.querySelectorAll("main > section:not([hidden])")].map((section) =>
        el("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)),
      el("button", { type: "button", id: "download", click: download }, "Save report.json")));
};

const when = (text) => {
  const found = /^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)/.exec(text);
  return found ? `${found[1]}, ${found[2]}${/Z$|\+00:00$/.test(text) ? " UTC" : ""}` : text;
};

const scoreNotes = (dataset, columns) => {
  const { resamples, confidence, seed } = report.bootstrap || {};
  const total = list(dataset.images).length;
  const chance = isFinite_(confidence) ? `${percent(confidence)} ` : "";
  const how = isFinite_(resamples) ? `${chance}bootstrap intervals over the images (${resamples} resamples, seed ${seed})` : `${chance}intervals over the images`;
  const reference = methodNamed(scores.reference);
  const lone = "One image, so there are no intervals.";
  const notes = [reference
    ? total === 1 ? `Differences to ${reference.title || reference.id}. ${lone}` : `Mean differences to ${reference.title || reference.id}, image by image, with ${how}. ▲ better and ▼ worse: the interval excludes zero. ≈: it includes zero. ≠: different, with no better or worse.`
    : total === 1 ? `${lone} Filled: best of its column.`
    : `Means over ${plural(total, "image")} with ${how}. Filled: best of its column. Outlined: the paired interval of its difference to the best includes zero.`];
  if (columns.some((c) => c.metric?.verified === false)) {
    notes.push("† Computed by another package and not verified here.");
  }
  if (reference && columns.some((c) => c.aspect === "cost")) notes.push("Speed and memory are shown as they are, not as differences.");
  const speeds = new Map(); // note -> the methods it is about
  for (const { id, title, speed_note: note } of list(report.methods)) {
    if (note) speeds.set(note, [...(speeds.get(note) || []), title || id]);
  }
  if (columns.some((c) => c.aspect === "cost") && speeds.size) {
    notes.push(`Speed and memory. ${[...speeds].map(([note, who]) => `${who.join(", ")}: ${note}`).join(". ")}.`);
  }
  const shown = new Set(columnsOf(dataset.name).map((c) => c.key));
  const absent = list(report.metrics).filter((metric) => !shown.has(metric.name) && !metric.missing);
  if (absent.length) {
    const why = [dataset.has_hr ? null : "HR", dataset.has_lr ? null : "LR"].filter(Boolean).join(" and no ");
    notes.push(`No figures here${why ? ` (this dataset has no ${why})` : ""}: ${absent.map((metric) => metric.title || metric.name).join(", ")}.`);
  }
  return notes.map((note) => el("p", { class: "muted small" }, note));
};

const drawTables = (dataset) => {
  const columns = columnsOf(dataset.name).filter((c) => !scores.hidden.has(c.aspect));
  const holder = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Scores on ${dataset.name}, scrolls sideways` });
  const draw = () => {
    const sorting = scores.sorting.get(dataset.name) || { key: "", turned: false };
    const sort = (key) => {
      // best first, then worst first, then the report's own order
      scores.sorting.set(dataset.name, sorting.key !== key ? { key, turned: false }
        : sorting.turned ? { key: "", turned: false } : { key, turned: true });
      draw();
      [...holder.querySelectorAll("button")].find((button) => button.dataset.key === key)?.focus();
    };
    holder.replaceChildren(drawTable(dataset, columns, scores.reference, sorting, sort));
  };
  draw();
  const missing = list(report.metrics).filter((metric) => metric.missing);
  const gaps = list(report.gaps).filter((gap) => gap.dataset === dataset.name);
  const more = (summary, pairs) => (pairs.length ? el("details", { class: "small" }, el("summary", {}, summary),
    el("dl", { class: "missing" }, pairs.map(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]))) : null);
  return el("div", { class: "dataset" }, el("h3", {}, dataset.name), holder, scoreNotes(dataset, columns),
    more(`${plural(missing.length, "metric")} not measured, and how to get ${missing.length === 1 ? "it" : "them"}`,
      missing.map((metric) => [metric.title || metric.name, metric.missing])),
    more("Images without a figure, and why", gaps.map((gap) => [
      `${metricNamed(gap.metric)?.title || gap.metric}, ${methodNamed(gap.method)?.title || gap.method}: ${plural(gap.count, "image")}`, gap.reason])));
};

const drawScores = () => {
  const datasets = datasetsShown();
  byId("scores").hidden = datasets.length === 0;
  const present = new Set(datasets.flatMap(({ name }) => columnsOf(name).map((c) => c.aspect)));
  const toggles = ASPECTS.filter(([key]) => present.has(key)).map(([key, text]) => {
    const button = el("button", {
      type: "button", "aria-pressed": String(!scores.hidden.has(key)),
      click: () => {
        if (!scores.hidden.delete(key)) scores.hidden.add(key);
        button.setAttribute("aria-pressed", String(!scores.hidden.has(key)));
        fillTables();
      },
    }, text);
    return button;
  });
  const methods = list(report.methods).map(({ id, title }) => [id, `difference to ${title || id}`]);
  byId("score-controls").replaceChildren(
    choice("Cells show", [["", "means"], ...methods], scores.reference, (value) => { scores.reference = value; fillTables(); }),
    el("div", { class: "field", role: "group", "aria-label": "Columns" }, el("span", { "aria-hidden": "true" }, "Columns"),
      el("div", { class: "switcher" }, toggles)));
  fillTables();
};
const fillTables = () => byId("tables").replaceChildren(...datasetsShown().map(drawTables));

const drawTrade = () => {
  const datasets = datasetsShown();
  const able = (name) => columnsOf(name).filter((c) => c.key !== "cost rate");
  const sets = datasets.filter(({ name }) => able(name).length > 1).map(({ name }) => [name, name]);
  byId("trade").hidden = sets.length === 0;
  if (!sets.length) return;
  if (!sets.some(([name]) => name === trade.dataset)) trade.dataset = sets[0][0];
  const columns = able(trade.dataset);
  const find = (key) => columns.find((c) => c.key === key);
  const drawn = (...both) => list(report.methods).filter((method) => both.every((c) => isFinite_(c.read(method).value)));
  // of the columns of the first aspect there is, the first in which most methods can be drawn
  const pick = (aspects, other) => {
    const free = columns.filter((c) => c !== other);
    const group = aspects.map((aspect) => free.filter((c) => c.aspect === aspect)).find((some) => some.length) || free;
    const count = (c) => drawn(c, other || c).length;
    return group.reduce((best, c) => (count(c) > count(best) ? c : best)).key;
  };
  if (!find(trade.across)) trade.across = pick(["fidelity", "consistency"]);
  if (!find(trade.up)) trade.up = pick(["realism"], find(trade.across));
  const options = columns.map((c) => [c.key, c.title]);
  const set = (field) => (value) => {
    trade[field] = value;
    drawTrade();
  };
  const focused = [...byId("trade-controls").querySelectorAll("select")].indexOf(document.activeElement);
  byId("trade-controls").replaceChildren(
    choice("Dataset", sets, trade.dataset, set("dataset")),
    choice("Across", options, trade.across, set("across")), choice("Up", options, trade.up, set("up")));
  if (focused >= 0) byId("trade-controls").querySelectorAll("select")[focused].focus();
  const dataset = datasets.find(({ name }) => name === trade.dataset);
  const width = Math.max(Math.floor(byId("trade-figure").clientWidth), 280);
  const axes = [find(trade.across), find(trade.up)];
  const inside = drawn(...axes);
  const outside = list(report.methods).filter((method) => !inside.includes(method));
  const hollow = inside.some(({ kind }) => kind === "scores");
  byId("trade-figure").replaceChildren(drawScatter(dataset, ...axes, width),
    el("figcaption", { class: "muted small" },
      axes.every(({ better }) => better === "higher" || better === "lower") ? "Further to the upper right is better. " : "",
      axes.some(({ better }) => better === "one") ? "Dashed: 1, the value of the reference. " : "", "Bars are the intervals of the table; a line joins one model at several numbers of steps.",
      hollow ? " Hollow: scores from elsewhere." : "",
      outside.length ? ` Not shown, as a figure is missing or infinite: ${outside.map(({ id, title }) => title || id).join(", ")}.` : ""));
};

const PROBLEM_HEADS = ["Dataset", "Image", "Method", "Problem", "Remedy"];
const drawProblems = () => {
  const rows = [...list(report.problems), ...list(pictures.left_out).map((one) => ({
    dataset: one.dataset, image: one.image, method: one.picture, problem: one.problem, remedy: "Not shown in this page; its figures stand.",
  }))];
  byId("problems").hidden = rows.length === 0;
  byId("problem-list").replaceChildren(
    el("p", { class: "muted small" }, `${plural(rows.length, "problem")}; everything else was scored.`),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Problems" }, el("table", { class: "plain" },
      el("thead", {}, el("tr", {}, PROBLEM_HEADS.map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, rows.slice(0, 500).map((row) => el("tr", {},
        [row.dataset, row.image, row.method, row.problem, row.remedy].map((text, i) =>
          el("td", { "data-label": PROBLEM_HEADS[i] }, text || "–"))))))),
    rows.length > 500 ? el("p", { class: "muted small" }, `${rows.length - 500} more are in report.json.`) : "");
};

const drawGlossary = () => {
  byId("glossary").hidden = !list(report.metrics).length;
  const metrics = list(report.metrics).map((metric) => el("tr", {},
    el("th", { scope: "row" }, metric.title || metric.name, el("code", { class: "facts" }, metric.name)),
    el("td", {}, [direction(metric.better), metric.range && `range ${metric.range}`, metric.scope === "set" ? "one figure for a whole dataset" : null].filter(Boolean).join("; ")),
    el("td", {}, sentence(metric.note), metric.verified === false ? " Not verified here." : "",
      metric.missing ? ` Not measured: ${sentence(metric.missing)}` : "")));
  const methods = list(report.methods).map((method) => el("tr", {},
    el("th", { scope: "row" }, method.title || method.id, el("code", { class: "facts" }, method.id)),
    el("td", {}, [method.kind, method.steps && plural(method.steps, "step"), method.licence].filter(Boolean).join(", ")),
    el("td", {}, names(method.details).map((key) => `${key} = ${typeof method.details[key] === "object" ? JSON.stringify(method.details[key]) : method.details[key]}`).join(", "),
      method.sha256 ? el("code", { class: "facts" }, `sha256 ${method.sha256}`) : null)));
  const table = (heads, rows) => el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": heads[0] }, el("table", { class: "plain" },
    el("thead", {}, el("tr", {}, heads.map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, rows)));
  byId("glossary-list").replaceChildren(table(["Metric", "How to read it", "What it is"], metrics),
    methods.length ? table(["Method", "Kind", "Details"], methods) : "");
};

/** Paper has no scroll bars: the tables once more, in parts that fit. */
const printTables = () => byId("print-tables").replaceChildren(...datasetsShown().flatMap((dataset) => {
  const columns = columnsOf(dataset.name).filter((c) => !scores.hidden.has(c.aspect));
  const parts = Math.ceil(columns.length / 9);
  const size = Math.ceil(columns.length / Math.max(parts, 1));
  const sorting = scores.sorting.get(dataset.name) || { key: "", turned: false };
  return [el("h3", {}, dataset.name), ...Array.from({ length: parts }, (_, i) =>
    drawTable(dataset, columns.slice(i * size, (i + 1) * size), scores.reference, sorting, null)), ...scoreNotes(dataset, columns)];
}));

drawScores();
drawTrade();
drawGallery();
drawProblems();
drawGlossary();
drawHeader();
byId("foot").replaceChildren(el("p", { class: "muted small" },
  "This file needs nothing else: no network, no other files. It holds the whole report; “Save report.json” gives it back."));
let drawnAt = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth !== drawnAt) drawTrade();
  drawnAt = window.innerWidth;
});
window.addEventListener("beforeprint", printTables);
window.addEventListener("afterprint", () => byId("print-tables").replaceChildren());
document.documentElement.dataset.ready = "yes";
