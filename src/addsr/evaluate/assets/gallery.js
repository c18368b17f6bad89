// Worst and best images of a method by a metric, or by its difference to another method.

const FEW = 6, MOST = 200;

const gallery = { dataset: null, method: null, metric: null, against: "", all: false };

const pictureIndex = (dataset, image) => at(pictures.images, dataset, image);
const parsed = new Map(); // image -> its pictures in base64; the latest few
const pictureTexts = (dataset, image) => {
  const entry = pictureIndex(dataset, image);
  if (!entry) return {};
  if (!parsed.has(entry.block)) {
    if (parsed.size > 24) parsed.delete(parsed.keys().next().value);
    parsed.set(entry.block, readBlock(`pictures-${entry.block}`));
  }
  return parsed.get(entry.block);
};

const imageMetrics = (dataset) => list(report.metrics).filter((metric) =>
  list(report.methods).some(({ id }) => names(at(report.scores, dataset, id, metric.name, "images")).length));
const scoredMethods = (dataset, metric) => list(report.methods).filter(({ id }) =>
  names(at(report.scores, dataset, id, metric, "images")).length);

/** [image, figure] from best to worst; where there is no better, from high to low. */
const rankImages = ({ dataset, method, metric: name, against }) => {
  const metric = metricNamed(name);
  const worth = (value) => merit(metric.better, value) ?? value;
  return list(report.datasets.find((one) => one.name === dataset)?.images)
    .map((image) => {
      const mine = imageScore(dataset, method, name, image);
      const theirs = against ? imageScore(dataset, against, name, image) : 0;
      if (mine === null || theirs === null) return null;
      const gain = against ? worth(mine) - worth(theirs) : worth(mine);
      return Number.isNaN(gain) ? null : { image, gain, figure: against ? mine - theirs : mine };
    })
    .filter(Boolean)
    .sort((a, b) => (b.gain === a.gain ? 0 : b.gain - a.gain));
};

const imageCard = ({ image, figure }) => {
  const { dataset, method, metric, against } = gallery;
  const text = format(figure, digitsOf(metricNamed(metric)), Boolean(against));
  const entry = pictureIndex(dataset, image);
  const words = [el("span", { class: "card-name" }, image), el("span", { class: "card-figure" }, text)];
  if (!entry) return el("li", {}, el("div", { class: "card plain" }, words));
  const texts = pictureTexts(dataset, image);
  const key = Object.hasOwn(texts, method) ? method : Object.hasOwn(texts, "hr") ? "hr" : names(texts)[0];
  const note = key === method ? null : el("span", { class: "card-note" },
    key === "hr" || key === "lr" ? `${key} shown` : `${methodNamed(key)?.title || key} shown`);
  const open = () => viewer.open({ dataset, image, method, against });
  return el("li", {}, el("button", { type: "button", class: "card", click: open, "aria-label": `${image}, ${text}: compare` },
    key === undefined ? null
      : el("img", { src: `data:image/webp;base64,${texts[key]}`, alt: "" }),
    note, el("span", { class: "card-words" }, words)));
};

const drawGallery = () => {
  const datasets = list(report.datasets).filter(({ name }) => imageMetrics(name).length);
  byId("pictures").hidden = datasets.length === 0;
  if (!datasets.length) return;
  const known = (options, value, fallback) => (options.some(([key]) => key === value) ? value : fallback);
  const sets = datasets.map(({ name }) => [name, name]);
  gallery.dataset = known(sets, gallery.dataset, sets[0][0]);
  const metrics = imageMetrics(gallery.dataset).map((metric) => [metric.name, metric.title || metric.name]);
  gallery.metric = known(metrics, gallery.metric, metrics[0][0]);
  const methods = scoredMethods(gallery.dataset, gallery.metric).map(({ id, title }) => [id, title || id]);
  // a model is most often what the report is about
  const model = methods.findLast(([id]) => methodNamed(id)?.kind === "model") ?? methods[methods.length - 1];
  gallery.method = known(methods, gallery.method, model[0]);
  const others = [["", "nothing: the figure itself"], ...methods.filter(([id]) => id !== gallery.method)];
  gallery.against = known(others, gallery.against, "");
  const set = (field) => (value) => { gallery[field] = value; drawGallery(); };
  const focused = [...byId("picture-controls").querySelectorAll("select")].indexOf(document.activeElement);
  byId("picture-controls").replaceChildren(
    choice("Dataset", sets, gallery.dataset, set("dataset")),
    choice("Method", methods, gallery.method, set("method")),
    choice("Metric", metrics, gallery.metric, set("metric")),
    choice("Compared with", others, gallery.against, set("against")));
  if (focused >= 0) byId("picture-controls").querySelectorAll("select")[focused]?.focus();

  const metric = metricNamed(gallery.metric);
  const ranked = rankImages(gallery);
  const judged = merit(metric.better, 1) !== null;
  const few = ranked.length <= FEW * 2;
  const strip = (title, images) => [el("h3", {}, title), el("ul", { class: "cards" }, images.map(imageCard))];
  const what = `${metric.title || metric.name}${metric.unit ? ` in ${metric.unit}` : ""}, ${direction(metric.better)}` +
    (gallery.against ? `; the figures are differences to ${methodNamed(gallery.against)?.title || gallery.against}` : "");
  const shown = gallery.all || few
    ? strip(`${judged ? "All, the worst first" : "All, the lowest first"}`, ranked.slice().reverse().slice(0, MOST))
    : [...strip(judged ? "Worst" : "Lowest", ranked.slice(-FEW).reverse()),
      ...strip(judged ? "Best" : "Highest", ranked.slice(0, FEW))];
  const toggle = few ? null : el("button", {
    type: "button", class: "more", click: () => { gallery.all = !gallery.all; drawGallery(); byId("picture-list").querySelector(".more")?.focus(); },
  }, gallery.all ? "Show the ends only" : `Show ${ranked.length > MOST ? `the worst ${MOST} of ` : "all "}${ranked.length}`);
  byId("picture-list").replaceChildren(
    el("p", { class: "muted small" }, `${what}.${pictures.packing
      ? ` Choose a picture to compare it closely. This page holds the pictures as ${pictures.packing}${
        pictures.omitted ? ` and leaves out those of ${plural(pictures.omitted, "image")}` : ""}; all figures were measured on the original files.`
      : " This page was made without pictures."}`),
    ...shown, toggle ?? "");
};
