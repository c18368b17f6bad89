// Elements, numbers and data blocks. Everything on the page is made of text nodes and attributes
// set here; no value is ever parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

/** Own property of a parsed object; names such as "constructor" find nothing they should not. */
const at = (object, ...keys) => {
  for (const key of keys) {
    if (object === null || typeof object !== "object" || !Object.hasOwn(object, key)) {
      return undefined;
    }
    object = object[key];
  }
  return object;
};
const list = (value) => (Array.isArray(value) ? value : []);
const names = (value) => (value && typeof value === "object" ? Object.keys(value) : []);

const fill = (element, attributes, children) => {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(2)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
};
/** An HTML element; functions among the attributes listen to the event of their name. */
const el = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);
const blockText = (id) => byId(id)?.textContent ?? "null";
const readBlock = (id) => JSON.parse(blockText(id));

/** A figure of the report as a number; null where there is none. */
const number = (value) => {
  if (typeof value === "number") return value;
  if (value === "inf") return Infinity;
  return value === "-inf" ? -Infinity : null;
};
const isFinite_ = (value) => typeof value === "number" && Number.isFinite(value);

/** "22.84"; infinity as a sign, nothing as a dash. */
const format = (value, digits, signed = false) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value) === Infinity ? "∞" : Math.abs(value).toFixed(digits);
  const negative = value < 0 && !/^[0.]*$/.test(size);
  if (negative) return `\u2212${size}`;
  return signed && !/^[0.]*$/.test(size) ? `+${size}` : size;
};
/** Three digits that count, for figures of any size. */
const brief = (value) => {
  if (!isFinite_(value)) return format(value, 0);
  const size = Math.abs(value);
  if (size === 0) return "0";
  const digits = Math.min(Math.max(2 - Math.floor(Math.log10(size)), 0), 4);
  return format(value, digits);
};
const percent = (share) => `${Number((share * 100).toPrecision(3))} %`;
const sentence = (text) => (text && !/[.!?]$/.test(text) ? `${text}.` : text || "");
const bytes = (value) => {
  if (!isFinite_(value)) return "–";
  return value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(2)} GiB` : `${brief(value / 2 ** 20)} MiB`;
};
const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

/** A labelled select; `options` are [value, text] pairs. */
const choice = (label, options, value, change) => {
  const select = el("select", { change: () => change(select.value) });
  for (const [key, text] of options) {
    const option = el("option", {}, text);
    option.value = key; // a property: an attribute would be trimmed in the text of an option
    option.selected = key === value;
    select.append(option);
  }
  return el("label", { class: "field" }, el("span", {}, label), select);
};
/** Buttons of which one is pressed. */
const switcher = (label, options, value, change) => {
  const buttons = options.map(([key, text]) =>
    el("button", {
      type: "button",
      "aria-pressed": String(key === value),
      click: () => {
        buttons.forEach((button, i) =>
          button.setAttribute("aria-pressed", String(options[i][0] === key)));
        change(key);
      },
    }, text));
  return el("div", { class: "field", role: "group", "aria-label": label },
    el("span", { "aria-hidden": "true" }, label), el("div", { class: "switcher" }, buttons));
};

/** Hands `text` to the browser as a file to save. */
const save = (name, text) => {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = el("a", { href: url, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
};
