// Blind comparison: which of two pictures is better, not knowing which method made which.

const data = readBlock("ab-data");
const items = data.items;
const STORE = `addsr-ab ${data.id}`;
const REFERENCES = { hr: "reference (HR)", lr: "input (LR)" };

/** What the answers mean. Encoded, not encrypted: it keeps the answer out of sight, no more. */
const readKey = () => {
  let state = parseInt(data.id.slice(0, 8), 16) | 1;
  const text = Array.from(atob(data.key), (letter) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return String.fromCharCode(letter.charCodeAt(0) ^ (state >>> 24));
  }).join("");
  return JSON.parse(text);
};

const memory = {
  load() {
    try {
      const found = JSON.parse(localStorage.getItem(STORE));
      const fine = list(found).every((answer) => ["1", "2", "tie", "skip"].includes(answer?.choice) && isFinite_(answer.seconds));
      return fine ? list(found).slice(0, items.length) : [];
    } catch {
      return []; // storage is switched off, or holds something else
    }
  },
  keep() {
    try {
      localStorage.setItem(STORE, JSON.stringify(answers));
      return true;
    } catch {
      return false;
    }
  },
};

let answers = memory.load(); // { choice: "1" | "2" | "tie" | "skip", seconds }, by position
let reference = data.references[0] ?? "";
let blink = false;
const decoded = new Map();

const clock = {
  since: null, spent: 0,
  start() { this.spent = 0; this.since = document.hidden ? null : performance.now(); },
  pause() { if (this.since !== null) this.spent += performance.now() - this.since; this.since = null; },
  read() { this.pause(); return Math.round(this.spent / 10) / 100; },
};
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clock.pause();
  else if (!byId("judge").hidden && clock.since === null) clock.since = performance.now();
});

const screen_ = (name) => {
  for (const id of ["intro", "judge", "result"]) byId(id).hidden = id !== name;
  window.scrollTo(0, 0);
};

const showIntro = () => {
  const again = answers.length > 0;
  const keys = [
    [["←"], "picture 1 is better"], [["→"], "picture 2 is better"], [["↓"], "no difference, or none that matters"],
    [["S"], "skip: cannot say"], [["⌫"], "take the last answer back"],
    [["+", "-", "0"], "zoom in, out, fit; or the wheel, two fingers, a double click"],
    [["⇧ ←↑↓→"], "move the picture; or drag it"], [["B"], "hold to see picture 1 on both sides"],
    ...(data.references.length ? [[["R"], "show or hide the reference"]] : []),
  ];
  byId("intro").replaceChildren(
    el("h1", {}, "Which picture is better?"),
    el("p", {}, `${plural(items.length, "pair")} of pictures, made by the same two methods throughout. Order and sides were shuffled; at the end you see which method you preferred.`),
    el("p", { class: "muted" }, "The sides are encoded in this file and not shown while you judge. That keeps the comparison blind for anyone who does not go looking; it is no protection against someone who reads the file to cheat."),
    el("dl", { class: "keys" }, keys.map(([names_, words]) => [
      el("dt", {}, names_.flatMap((name, i) => [i ? " " : null, el("kbd", {}, name)])), el("dd", {}, words)])),
    el("div", { class: "row" },
      el("button", { type: "button", class: "main", id: "start", click: judge }, again ? `Go on at pair ${Math.min(answers.length + 1, items.length)}` : "Start"),
      again ? el("button", { type: "button", id: "restart", click: restart }, "Start over") : null),
    el("p", { class: "muted small" }, `Answers are kept in this browser until you start over. The pictures are stored as ${data.packing}, both sides alike.`),
    data.left_out.length ? el("details", {}, el("summary", {}, `${plural(data.left_out.length, "picture")} left out`),
      el("ul", { class: "left-out small" }, data.left_out.map(({ name, problem }) => el("li", {}, `${name}: ${problem}`)))) : "");
  screen_("intro");
  byId("start").focus();
};

const restart = () => {
  answers = [];
  memory.keep();
  judge();
};

const stage = new Stage(({ view }) => { zoomed.textContent = `${Math.round(view.zoom * 100)} %`; });
const zoomed = el("output", { class: "zoom", "aria-live": "off" });
const panes = el("div", { class: "panes" });
const told = el("div", { class: "progress", role: "status" });
const meter = el("progress", { max: items.length, "aria-label": "Progress" });
const canvases = {}, tags = {};
const referenceButton = el("button", { type: "button", id: "reference", click: () => turnReference() });
const undoButton = el("button", { type: "button", id: "undo", click: () => undo() }, "Back ", el("kbd", {}, "⌫"));

const buildJudge = () => {
  if (panes.isConnected) return;
  const tool = (text, title, click, id) => el("button", { type: "button", title, "aria-label": title, click, id }, text);
  byId("judge").append(
    el("div", { class: "bar" }, told, meter, el("span", { class: "gap" }),
      data.references.length ? referenceButton : null,
      el("div", { class: "switcher" }, tool("−", "Smaller (-)", () => stage.step(-1)), zoomed, tool("+", "Larger (+)", () => stage.step(1)),
        tool("Fit", "Fit into the window (0)", () => stage.fit()), tool("1:1", "One pixel on one pixel", () => stage.zoomTo(1))),
      tool("Finish", "Stop here and see the result", () => showResult(), "finish")),
    panes,
    el("div", { class: "answers" },
      el("button", { type: "button", id: "first", click: () => answer("1") }, el("kbd", {}, "←"), "1 is better"),
      el("button", { type: "button", id: "tie", click: () => answer("tie") }, "No difference", el("kbd", {}, "↓")),
      el("button", { type: "button", id: "second", click: () => answer("2") }, "2 is better", el("kbd", {}, "→"))),
    el("div", { class: "minor" }, undoButton,
      el("button", { type: "button", id: "skip", click: () => answer("skip") }, "Skip ", el("kbd", {}, "S"))));
};

const judge = () => {
  if (answers.length >= items.length) return showResult();
  buildJudge();
  screen_("judge");
  if (window.matchMedia("(max-width: 40rem)").matches && !panes.childElementCount) reference = "";
  drawPanes();
  return showPair();
};

const turnReference = () => {
  const turns = [...data.references, ""];
  reference = turns[(turns.indexOf(reference) + 1) % turns.length];
  drawPanes();
  showPair(false);
};

const drawPanes = () => {
  const shown = [["1", "1"], ...(reference ? [["reference", REFERENCES[reference]]] : []), ["2", "2"]];
  panes.replaceChildren(...shown.map(([key, text]) => {
    canvases[key] = canvases[key] || el("canvas", { tabindex: 0, role: "img" });
    canvases[key].setAttribute("aria-label", key === "reference" ? text : `Picture ${text}`);
    tags[key] = el("div", { class: "tag", "aria-hidden": "true" }, text);
    return el("div", { class: "pane" }, tags[key], canvases[key]);
  }));
  const next = [...data.references, ""][([...data.references, ""].indexOf(reference) + 1) % (data.references.length + 1)];
  referenceButton.replaceChildren(next ? `Show ${REFERENCES[next]}` : `Hide ${REFERENCES[reference]}`, " ", el("kbd", {}, "R"));
};

const load = (position) => {
  if (position >= items.length) return null;
  if (!decoded.has(position)) {
    if (decoded.size > 3) decoded.delete(decoded.keys().next().value);
    const texts = readBlock(`pair-${position}`);
    const jobs = Object.entries(texts).map(async ([key, text]) => [key, await decode(text)]);
    decoded.set(position, Promise.all(jobs).then(Object.fromEntries));
  }
  return decoded.get(position);
};

const showPair = async (fresh = true) => {
  const position = answers.length;
  const item = items[position];
  told.replaceChildren(`${position + 1} of ${items.length}`, el("span", {}, item.name));
  meter.value = position;
  undoButton.disabled = position === 0;
  const images = await load(position);
  if (position !== answers.length || byId("judge").hidden) return; // answered meanwhile
  const [width, height] = item.size;
  const area = { x: 0, y: 0, width, height };
  stage.frame = area;
  if (fresh) stage.fitted = true;
  const shown = reference ? ["1", "reference", "2"] : ["1", "2"];
  stage.setPanes(shown.map((key) => ({
    canvas: canvases[key],
    layers: [{ source: images[key === "reference" ? reference : blink ? "1" : key], area }],
  })));
  tags["2"].replaceChildren(blink ? "1" : "2");
  document.documentElement.dataset.pair = String(position);
  if (fresh) {
    clock.start();
    load(position + 1);
  }
};

const answer = (choice_) => {
  if (byId("judge").hidden || document.documentElement.dataset.pair !== String(answers.length)) return;
  answers.push({ choice: choice_, seconds: clock.read() });
  memory.keep();
  if (answers.length >= items.length) showResult();
  else showPair();
};

const undo = () => {
  if (!answers.length) return;
  answers.pop();
  memory.keep();
  judge();
};

const collect = () => {
  const key = readKey();
  const results = answers.map(({ choice: side, seconds }, i) => {
    const first = key.first[i];
    const other = first === "a" ? "b" : "a";
    return { image: items[i].name, choice: side === "1" ? first : side === "2" ? other : side, first, seconds };
  });
  const count = (value) => results.filter((one) => one.choice === value).length;
  const tally = { a: count("a"), b: count("b"), tie: count("tie"), skip: count("skip") };
  tally.p = signTest(tally.a, tally.b);
  return { titles: { a: key.a, b: key.b }, results, tally };
};

const showResult = () => {
  clock.pause();
  const { titles, results, tally } = collect();
  const named = { a: titles.a, b: titles.b, tie: "no difference", skip: "skipped" };
  const judged = tally.a + tally.b, whole = judged + tally.tie;
  const lead = tally.a > tally.b ? "a" : tally.b > tally.a ? "b" : null;
  const p = tally.p < 0.0001 ? "below 0.0001" : tally.p.toPrecision(2);
  const firsts = results.filter((one) => one.choice === one.first).length;
  const file = () => save(`addsr-ab-${data.id}.json`, JSON.stringify({
    format: "addsr-ab", version: 1, made_by: data.made_by, page: data.id, seed: data.seed, pairs: items.length,
    date: new Date().toISOString(), titles, answers: results, tally,
  }, null, 1));
  const part = (name) => {
    const bar = el("div", { class: name, title: named[name] }, String(tally[name]));
    bar.style.flexGrow = String(tally[name]);
    return tally[name] ? bar : null;
  };
  byId("result").replaceChildren(
    el("h1", {}, !results.length ? "No answers yet" : lead && tally.p < 0.05 ? `${titles[lead]} was preferred` : "No clear preference"),
    el("p", { class: "verdict" }, `${titles.a} was better in ${tally.a}, ${titles.b} in ${tally.b} of ${plural(whole, "pair")}; no difference in ${tally.tie}${tally.skip ? `, ${tally.skip} skipped` : ""}.`),
    whole ? el("div", { class: "tally", "aria-hidden": "true" }, part("a"), part("tie"), part("b")) : "",
    judged ? el("p", {}, `Exact two-sided sign test over the ${judged} with a preference: p = ${p}. `, tally.p < 0.05
      ? "If both were equally liked, a split this uneven would be rare."
      : "A split like this would be no surprise if both were equally liked.") : "",
    judged ? el("p", { class: "muted small" }, `The picture shown first was chosen ${firsts} of ${judged} times. Ties and skipped pairs are left out of the test.`) : "",
    el("div", { class: "row" },
      el("button", { type: "button", class: "main", id: "save", click: file }, "Save the answers (JSON)"),
      answers.length < items.length ? el("button", { type: "button", id: "on", click: judge }, `Go on, ${items.length - answers.length} left`) : null,
      el("button", { type: "button", id: "restart-2", click: () => { if (window.confirm("Forget all answers and start over?")) restart(); } }, "Start over")),
    el("p", { class: "muted small" }, "Read one or more saved files with: ", el("code", {}, "addsr ab --tally FILE.json")),
    results.length ? el("h2", {}, "Answers") : "",
    results.length ? el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Picture"), el("th", { scope: "col" }, "Better"), el("th", { scope: "col", class: "number" }, "Seconds"))),
      el("tbody", {}, results.map((one) => el("tr", {}, el("td", {}, one.image),
        el("td", {}, el("span", { class: `dot ${one.choice}`, "aria-hidden": "true" }), named[one.choice]), el("td", { class: "number" }, one.seconds.toFixed(1)))))) : "");
  screen_("result");
  byId("save").focus();
};

const setBlink = (on) => {
  const judging = !byId("judge").hidden;
  if (blink === on || (on && !judging)) return;
  blink = on;
  if (judging) showPair(false);
};

document.addEventListener("keydown", (event) => {
  if (byId("judge").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const plain = { ArrowLeft: "1", 1: "1", ArrowRight: "2", 2: "2", ArrowDown: "tie", s: "skip", S: "skip" }[event.key];
  const letter = event.key.toLowerCase();
  if (plain && !event.shiftKey) {
    if (!event.repeat) answer(plain); // a key held down answers once
  } else if (event.key === "Backspace" || letter === "u") {
    if (!event.repeat) undo();
  } else if (letter === "r" && data.references.length) turnReference();
  else if (letter === "b") setBlink(true);
  else if (!stage.key(event, event.shiftKey)) return;
  event.preventDefault();
});
document.addEventListener("keyup", (event) => { if (event.key.toLowerCase() === "b") setBlink(false); });
window.addEventListener("blur", () => setBlink(false)); // the key comes up elsewhere

showIntro();
document.documentElement.dataset.ready = "yes";
