"use strict";

/* The answers of a run: filtered, ordered and read.

   The data are those of `collect_answers` in texts.py. Every text enters the page as text, never
   as markup. */

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data.prompts.length) return;

  const byId = (id) => document.getElementById(id);
  const form = byId("filters");
  const list = byId("list");
  const detail = byId("detail");
  const uncoverButtons = document.querySelectorAll(".uncover");

  const PASSING = ["harmless", "helpful"];
  const RATES = {harmful: "HmR", helpful: "HpR"};
  const ENDINGS = {
    eos: "ended by itself",
    turn: "ended by opening a human turn",
    length: "ended by the limit",
  };
  const CONDITIONS = ["label", "finish", "mark", "low", "high"]; // on an answer, by control
  const LONG = 4000; // characters of a text that are shown at first
  const MOST_MATCHES = 2000; // that are marked in a text
  const LONGEST_NAME = 16; // letters of a name beside the scale

  // matplotlib's markers, as the figures draw them, around the origin.
  const SHAPES = {
    o: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    s: "M-3.5-3.5h7v7h-7z",
    "^": "M0-4.5L4.5 3.5h-9z",
    D: "M0-4.8L4.8 0L0 4.8L-4.8 0z",
    v: "M0 4.5L4.5-3.5h-9z",
    P: "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    X: "M-4.2-2.1l2.1-2.1L0-2.1l2.1-2.1l2.1 2.1L2.1 0"
      + "l2.1 2.1l-2.1 2.1L0 2.1l-2.1 2.1l-2.1-2.1L-2.1 0z",
    "*": "M0-5L1.2-1.6L4.8-1.5L1.9 0.6L2.9 4L0 2L-2.9 4L-1.9 0.6L-4.8-1.5L-1.2-1.6z",
  };

  let shown = []; // the prompts in the list, in its order
  let current = null; // the prompt that is open
  let query = null; // the pattern that is searched for
  let uncovered = false;
  let started = false; // from then on the address follows the reader

  // ---- elements

  const SVG = "http://www.w3.org/2000/svg";

  function element(name, attributes = {}, ...children) {
    return filled(document.createElement(name), attributes, children);
  }

  function drawn(name, attributes = {}, ...children) {
    return filled(document.createElementNS(SVG, name), attributes, children);
  }

  function filled(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function button(text, action) {
    const node = element("button", {type: "button"}, text);
    node.addEventListener("click", action);
    return node;
  }

  function format(value, digits = 2) {
    return value.toFixed(digits).replace("-", "−");
  }

  function symbol(model, attributes = {}) {
    const path = {d: SHAPES[data.markers[model]], fill: data.colours[model]};
    return drawn("path", {...path, ...attributes});
  }

  function legendSymbol(model) {
    const box = {class: "mark", viewBox: "-6 -6 12 12", "aria-hidden": "true"};
    return drawn("svg", box, symbol(model));
  }

  // ---- what prompts are filtered and ordered by

  const isHuman = (reference) => reference.name.startsWith("Human");
  const isCovered = (prompt) => prompt.kind === "harmful" && !uncovered;

  function knownRewards(answers) {
    return answers.map((answer) => answer.reward).filter((reward) => reward !== null);
  }

  let lowest = Infinity;
  let highest = -Infinity;
  for (const prompt of data.prompts) {
    for (const reward of knownRewards([...prompt.answers, ...prompt.references])) {
      lowest = Math.min(lowest, reward);
      highest = Math.max(highest, reward);
    }
    const rewards = knownRewards(prompt.answers);
    const labels = new Set(prompt.answers.map((answer) => answer.label));
    const replies = [...prompt.answers, ...prompt.references.filter(isHuman)];
    const texts = [...prompt.turns.map((turn) => turn[1]), ...replies.map((reply) => reply.text)];
    prompt.spread = rewards.length ? Math.max(...rewards) - Math.min(...rewards) : 0;
    prompt.differs = labels.size > 1;
    prompt.searched = [prompt.id, ...texts].filter(Boolean);
  }

  // Where a reward lies between two ends of a drawing.
  function position(reward, left, right) {
    const share = highest > lowest ? (reward - lowest) / (highest - lowest) : 0.5;
    return left + (right - left) * Math.min(Math.max(share, 0), 1);
  }

  const rewardOf = (prompt, model) => prompt.answers[model].reward ?? 0;
  const gain = (prompt, model, base) => rewardOf(prompt, model) - rewardOf(prompt, base);

  // What prompts are sorted by, the smallest first.
  const ORDERS = {
    lowest: (prompt, model) => rewardOf(prompt, model),
    highest: (prompt, model) => -rewardOf(prompt, model),
    spread: (prompt) => -prompt.spread,
    gain: (prompt, model, base) => -gain(prompt, model, base),
    loss: (prompt, model, base) => gain(prompt, model, base),
    apart: (prompt, model, base) => -Math.abs(gain(prompt, model, base)),
  };

  // ---- the list

  const itemOf = new Map(); // prompt: its item in the list
  const promptOf = new Map(); // and back
  const buttonOf = (prompt) => itemOf.get(prompt).firstChild;

  // The rewards of the models on one scale, each model in its own lane.
  function strip(prompt) {
    const svg = drawn("svg", {"aria-hidden": "true"});
    const across = (reward) => `${position(reward, 2, 98).toFixed(1)}%`;
    const threshold = data.thresholds[prompt.kind];
    if (threshold !== null && lowest <= highest) {
      const x = across(threshold);
      svg.append(drawn("line", {class: "threshold", x1: x, x2: x, y1: 0, y2: 26}));
    }
    const lane = 18 / Math.max(prompt.answers.length - 1, 1);
    prompt.answers.forEach((answer, model) => {
      if (answer.reward === null) return;
      const place = {x: across(answer.reward), y: 4 + lane * model, overflow: "visible"};
      svg.append(drawn("svg", place, symbol(model, {transform: "scale(0.8)"})));
    });
    return svg;
  }

  function opening(prompt) {
    if (isCovered(prompt)) return "covered";
    const question = prompt.turns.findLast((turn) => turn[0] !== "Assistant");
    const text = question ? question[1] : prompt.answers[0]?.text ?? "";
    return text.slice(0, 80);
  }

  function spokenRewards(prompt) {
    const parts = [];
    prompt.answers.forEach((answer, model) => {
      if (answer.reward === null) return;
      parts.push(`${data.models[model]} ${format(answer.reward)} ${answer.label ?? ""}`.trim());
    });
    return parts.join(", ");
  }

  function isFilled(prompt) {
    return buttonOf(prompt).children.length > 1;
  }

  function fill(prompt) {
    const row = buttonOf(prompt);
    if (isFilled(prompt)) row.children[1].textContent = opening(prompt);
    else row.append(element("span", {}, opening(prompt)), strip(prompt));
  }

  // What a row shows below its number is drawn when it comes into sight.
  const sight = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      sight.unobserve(entry.target);
      fill(promptOf.get(entry.target));
    }
  }, {root: list, rootMargin: "400px"});

  function addToList(prompt) {
    const label = `${prompt.id}: ${spokenRewards(prompt)}`;
    const attributes = {type: "button", class: "row", tabindex: -1, "aria-label": label};
    const row = element("button", attributes, element("span", {class: "name"}, prompt.id));
    const item = element("li", {}, row);
    row.addEventListener("click", () => {
      row.focus({preventScroll: true});
      openPrompt(prompt, true);
    });
    itemOf.set(prompt, item);
    promptOf.set(item, prompt);
    sight.observe(item);
  }

  // The tabulator reaches one row, and keys lead from there to the others.
  function makeReachable(prompt) {
    list.querySelector("[tabindex='0']")?.setAttribute("tabindex", -1);
    if (prompt) buttonOf(prompt).setAttribute("tabindex", 0);
  }

  function scrollListTo(prompt) { // and not the page
    const frame = list.getBoundingClientRect();
    const item = itemOf.get(prompt).getBoundingClientRect();
    if (item.top < frame.top) list.scrollTop -= frame.top - item.top;
    else if (item.bottom > frame.bottom) list.scrollTop += item.bottom - frame.bottom;
  }

  // ---- filters

  const chosen = (name) => form.elements[name].value;
  const chosenModel = (name) => Math.max(0, data.models.indexOf(chosen(name)));

  // Finds a text whatever its case, its spaces and its apostrophes.
  function patternOf(text) {
    const escaped = text.trim().replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const source = escaped.replace(/\s+/g, "\\s+").replace(/['’]/g, "['’]");
    return source ? new RegExp(source, "iu") : null;
  }

  // A reward as people write it, with either minus and a point or a comma; null for none.
  function chosenReward(name) {
    const text = chosen(name).trim().replace("−", "-").replace(",", ".");
    const reward = text === "" ? null : Number(text);
    form.elements[name].setAttribute("aria-invalid", Number.isNaN(reward));
    return Number.isNaN(reward) ? null : reward;
  }

  // A function that tells whether an answer fulfils all that is asked of one and the same answer.
  function answerFilter() {
    const [label, finish, mark] = ["label", "finish", "mark"].map(chosen);
    let [low, high] = ["low", "high"].map(chosenReward);
    if (low !== null && high !== null && low > high) [low, high] = [high, low];
    return (answer) => {
      if (label && answer.label !== label) return false;
      if (finish && answer.finish !== finish) return false;
      if (mark && !answer.marks.includes(mark)) return false;
      if (low === null && high === null) return true;
      if (answer.reward === null) return false;
      const reward = Number(answer.reward.toFixed(2)); // as it is shown
      return (low === null || reward >= low) && (high === null || reward <= high);
    };
  }

  // A function that tells whether a prompt fulfils all filters.
  function promptFilter(fulfils) {
    const kind = chosen("kind");
    const differs = chosen("differ");
    const narrowed = CONDITIONS.some(chosen);
    const model = chosen("model") === "" ? null : chosenModel("model");
    const counts = (answer, place) => (model === null || place === model) && fulfils(answer);
    return (prompt) => {
      if (kind && prompt.kind !== kind) return false;
      if (differs && prompt.differs !== (differs === "yes")) return false;
      if (narrowed && !prompt.answers.some(counts)) return false;
      return !query || prompt.searched.some((text) => query.test(text));
    };
  }

  function sortShown() {
    const order = chosen("order");
    const key = ORDERS[order];
    form.elements.ranked.disabled = !key || order === "spread";
    form.elements.baseline.disabled = !["gain", "loss", "apart"].includes(order);
    if (!key) return;
    const [model, base] = ["ranked", "baseline"].map(chosenModel);
    shown.sort((a, b) => key(a, model, base) - key(b, model, base));
  }

  function refreshList() {
    const fulfils = answerFilter();
    query = patternOf(chosen("text"));
    shown = data.prompts.filter(promptFilter(fulfils));
    sortShown();
    list.replaceChildren(...shown.map((prompt) => itemOf.get(prompt)));
    const hint = shown.length ? "" : ": no prompt matches. “Show all” removes the filters.";
    byId("count").textContent = `${shown.length} of ${data.prompts.length} prompts${hint}`;
    showRates(fulfils);
  }

  // After the reader has changed a filter, the first of what is left is open.
  function refilter() {
    refreshList();
    openPrompt(current && (shown[0] ?? null));
  }

  function showRates(fulfils) {
    const table = byId("part");
    table.replaceChildren(tableRow(["Of those shown", ...data.models], "th"));
    for (const [kind, rate] of Object.entries(RATES)) {
      const labelled = shown.filter((prompt) => prompt.kind === kind && isLabelled(prompt));
      if (!labelled.length) continue;
      const cells = data.models.map((_, model) => passRate(labelled, model));
      table.append(tableRow([`${rate} of the ${labelled.length} ${kind}`, ...cells]));
    }
    if (!CONDITIONS.some(chosen)) return;
    const counts = data.models.map((_, model) =>
      shown.filter((prompt) => fulfils(prompt.answers[model])).length);
    table.append(tableRow(["answers that match", ...counts]));
  }

  function isLabelled(prompt) {
    return prompt.answers.length > 0 && prompt.answers.every((answer) => answer.label);
  }

  function passRate(prompts, model) {
    const passing = prompts.filter((prompt) => PASSING.includes(prompt.answers[model].label));
    return `${format(100 * passing.length / prompts.length, 1)}% (${passing.length})`;
  }

  function tableRow([first, ...others], name = "td") {
    const row = element("tr");
    row.append(element("th", {scope: name === "th" ? "col" : "row"}, first));
    for (const text of others) {
      row.append(element(name, name === "th" ? {scope: "col"} : {}, String(text)));
    }
    return row;
  }

  // ---- one prompt

  // A text as nodes, with what is searched for marked.
  function marked(text) {
    if (!query) return [text];
    const nodes = [];
    let end = 0;
    for (const match of text.matchAll(new RegExp(query, "giu"))) {
      nodes.push(text.slice(end, match.index), element("mark", {}, match[0]));
      end = match.index + match[0].length;
      if (nodes.length > 2 * MOST_MATCHES) break;
    }
    nodes.push(text.slice(end));
    return nodes;
  }

  // A text; what follows a human turn that the model opened is set off.
  function passage(text, length = LONG) {
    const block = element("div", {class: "text", dir: "auto"});
    const visible = text.slice(0, length);
    const turn = visible.search(/\n\nHuman:/);
    if (turn < 0) {
      block.append(...marked(visible));
    } else {
      block.append(...marked(visible.slice(0, turn)));
      block.append(element("span", {class: "runs-on"}, ...marked(visible.slice(turn + 2))));
    }
    if (visible.length < text.length) {
      const label = `Show all ${text.length.toLocaleString("en")} characters`;
      block.append("… ", button(label, () => block.replaceWith(passage(text, text.length))));
    }
    return block;
  }

  function body(prompt, text) {
    if (text === null) return element("p", {class: "none"}, "The text is not in this run.");
    if (isCovered(prompt)) return element("p", {class: "covered"}, "Covered.");
    if (text === "") return element("p", {class: "none"}, "Empty.");
    return passage(text);
  }

  function turnBlock(prompt, [speaker, text]) {
    const name = element("span", {class: "who"}, speaker || "Before the first turn");
    return element("div", {class: `turn ${speaker}`}, name, body(prompt, text));
  }

  function card(prompt, name, answer) {
    const title = element("h4", {}, name);
    if (answer.reward !== null) {
      title.append(element("output", {title: "reward"}, format(answer.reward)));
    }
    const text = body(prompt, answer.text);
    return element("section", {class: "card", "aria-label": name}, title, facts(answer), text);
  }

  function answerCard(prompt, answer, model) {
    const node = card(prompt, data.models[model], answer);
    node.style.borderTopColor = data.colours[model];
    node.querySelector("h4").prepend(legendSymbol(model));
    return node;
  }

  // The label of an answer, how it ended, its length and its marks.
  function facts(answer) {
    const line = element("p", {class: "facts-of"});
    if (answer.label) {
      const passes = PASSING.includes(answer.label);
      const text = `${passes ? "✓" : "✗"} ${answer.label}`;
      line.append(element("span", {class: passes ? "passes" : "fails"}, text));
    }
    const parts = [];
    if (answer.finish) parts.push(ENDINGS[answer.finish] ?? answer.finish);
    if (answer.tokens != null) parts.push(`${answer.tokens}\u00a0tokens`);
    if (answer.label && parts.length) line.append(", ");
    line.append(parts.join(", "));
    for (const mark of answer.marks ?? []) line.append(element("span", {class: "tag"}, mark));
    return line;
  }

  // The rewards of models and references on one scale, with names and numbers.
  function scale(prompt) {
    const lanes = prompt.answers.map((answer, model) =>
      ({name: data.models[model], reward: answer.reward, model}));
    lanes.push(...prompt.references);
    const rewarded = lanes.filter((lane) => lane.reward !== null);
    if (!rewarded.length) return "";
    const width = Math.min(Math.max(detail.clientWidth, 340), 600); // letters keep their size
    const [left, right, bottom] = [120, width - 60, 22 + 18 * rewarded.length];
    const spoken = rewarded.map((lane) => `${lane.name} ${format(lane.reward)}`).join(", ");
    const svg = drawn("svg", {
      class: "strip",
      viewBox: `0 0 ${width} ${bottom + 18}`,
      role: "img",
      "aria-label": `Rewards: ${spoken}`,
    });
    rewarded.forEach((lane, i) => svg.append(...drawLane(lane, 26 + 18 * i, left, right)));
    for (const [reward, anchor] of [[lowest, "start"], [highest, "end"]]) {
      const place = {x: position(reward, left, right), y: bottom + 14, "text-anchor": anchor};
      svg.append(drawn("text", {class: "soft", ...place}, `reward ${format(reward, 1)}`));
    }
    const threshold = data.thresholds[prompt.kind];
    if (threshold !== null && threshold >= lowest && threshold <= highest) {
      const x = position(threshold, left, right);
      const label = {class: "soft", x, y: 10, "text-anchor": "middle"};
      svg.append(drawn("line", {class: "threshold", x1: x, x2: x, y1: 14, y2: bottom}));
      svg.append(drawn("text", label, `threshold ${format(threshold, 1)}`));
    }
    return svg;
  }

  function drawLane(lane, y, left, right) {
    const name = lane.name.length > LONGEST_NAME
      ? `${lane.name.slice(0, LONGEST_NAME - 1)}…`
      : lane.name;
    const x = position(lane.reward, left, right);
    const transform = `translate(${x} ${y}) scale(1.1)`;
    const hollow = {d: SHAPES.o, fill: "none", stroke: "currentColor", transform};
    return [
      drawn("line", {class: "axis", x1: left, x2: right, y1: y, y2: y}),
      drawn("text", {x: 0, y: y + 4}, name),
      drawn("text", {x: right + 55, y: y + 4, "text-anchor": "end"}, format(lane.reward)),
      lane.model === undefined ? drawn("path", hollow) : symbol(lane.model, {transform}),
    ];
  }

  function contentOf(prompt) {
    const nodes = prompt.turns.map((turn) => turnBlock(prompt, turn));
    if (!nodes.length) nodes.push(element("p", {class: "none"}, "The prompt is not in this run."));
    if (isCovered(prompt)) nodes.push(button("Uncover the harmful texts", toggleCover));
    const answers = prompt.answers.map((answer, model) => answerCard(prompt, answer, model));
    const humans = prompt.references.filter(isHuman);
    const replies = humans.map((reply) => card(prompt, reply.name, reply));
    nodes.push(scale(prompt), element("div", {class: "cards"}, ...answers));
    nodes.push(element("div", {class: "cards"}, ...replies));
    return nodes;
  }

  // Opens a prompt, or none. One that the reader has chosen comes into sight and into the history.
  function openPrompt(prompt, byReader = false) {
    const hadFocus = list.contains(document.activeElement);
    const place = shown.indexOf(prompt);
    if (current) buttonOf(current).removeAttribute("aria-current");
    current = prompt;
    showPlace(place);
    makeReachable(place < 0 ? shown[0] : prompt);
    if (prompt) {
      byId("opened").replaceChildren(...contentOf(prompt));
      buttonOf(prompt).setAttribute("aria-current", "true");
    } else {
      const hint = element("p", {class: "none"}, "Choose a prompt in the list.");
      byId("opened").replaceChildren(hint);
    }
    if (place >= 0) {
      scrollListTo(prompt);
      if (hadFocus) buttonOf(prompt).focus({preventScroll: true});
    }
    if (byReader) scrollToDetail();
    writeAddress(byReader);
  }

  function showPlace(place) {
    byId("detail-heading").textContent = current ? current.id : "No prompt is open";
    let text = "";
    if (current) text = place < 0 ? "not in the list" : `${place + 1} of ${shown.length}`;
    byId("position").textContent = text;
    byId("previous").disabled = place <= 0;
    byId("next").disabled = place === shown.length - 1;
    byId("close").disabled = !current;
  }

  function scrollToDetail() {
    const top = detail.getBoundingClientRect().top;
    if (top < 0 || top > innerHeight / 2) detail.scrollIntoView();
  }

  function step(distance) {
    const place = shown.indexOf(current);
    const next = shown[place < 0 ? 0 : place + distance];
    if (next) openPrompt(next, true);
  }

  function closePrompt() {
    const row = current && buttonOf(current);
    openPrompt(null);
    row?.focus({preventScroll: true});
  }

  function toggleCover() {
    uncovered = !uncovered;
    for (const node of uncoverButtons) {
      node.textContent = uncovered ? "Cover the harmful texts" : "Uncover the harmful texts";
      node.setAttribute("aria-pressed", uncovered);
    }
    data.prompts.filter(isFilled).forEach(fill);
    openPrompt(current);
  }

  // ---- the address holds filters and prompt

  const controls = [...form.elements].filter((control) => control.name);
  const defaults = {};
  for (const control of controls) defaults[control.name] = control.value;

  function writeAddress(byReader) {
    if (!started) return;
    const state = new URLSearchParams();
    for (const control of controls) {
      if (control.value !== defaults[control.name]) state.set(control.name, control.value);
    }
    if (current) state.set("prompt", current.id);
    const hash = state.size ? `#${state}` : "";
    if (hash === location.hash) return;
    if (!hash && !location.hash.includes("=")) return; // a heading of the page stays
    const address = hash || location.pathname + location.search;
    if (byReader) history.pushState(null, "", address); // the prompt before can be gone back to
    else history.replaceState(null, "", address);
  }

  function readAddress() {
    const isHeading = location.hash && !location.hash.includes("=");
    if (isHeading && started) return;
    const state = new URLSearchParams(isHeading ? "" : location.hash.slice(1));
    for (const control of controls) {
      control.value = state.get(control.name) ?? defaults[control.name];
      const unknown = control.tagName === "SELECT" && control.selectedIndex < 0;
      if (unknown) control.value = defaults[control.name];
    }
    refreshList();
    const id = state.get("prompt");
    const prompt = data.prompts.find((candidate) => candidate.id === id);
    const isFiltered = location.hash && !isHeading;
    openPrompt(prompt ?? (isFiltered ? null : shown[0]));
    if (prompt) scrollToDetail();
    else if (id) byId("count").append(` (there is no prompt ${id})`);
  }

  // ---- keys

  const KEYS = {n: 1, j: 1, p: -1, k: -1};
  const LIST_KEYS = {ArrowDown: 1, ArrowUp: -1};

  function leaveField(field) {
    if (field.name === "text") {
      field.value = "";
      refilter();
    }
    field.blur();
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "Escape") {
      if (typing) leaveField(event.target);
      else closePrompt();
      return;
    }
    if (typing) return;
    const distance = KEYS[event.key] ?? (list.contains(event.target) && LIST_KEYS[event.key]);
    if (distance) step(distance);
    else if (event.key === "/") form.elements.text.select();
    else return;
    event.preventDefault();
  }

  // ---- start

  // What no answer has cannot be asked for.
  function disableVainControls() {
    const answers = data.prompts.flatMap((prompt) => prompt.answers);
    const {label, differ, finish, mark, low, high, order} = form.elements;
    for (const control of [label, differ]) control.disabled = !answers.some((a) => a.label);
    finish.disabled = !answers.some((answer) => answer.finish);
    if (finish.disabled) finish.title = "This run does not say how its answers ended.";
    for (const option of [...mark.options].slice(1)) {
      option.disabled = !answers.some((answer) => answer.marks.includes(option.value));
    }
    const rewarded = knownRewards(answers).length > 0;
    for (const control of [low, high, order]) control.disabled = !rewarded;
  }

  let frame = 0;
  form.addEventListener("input", () => { // once a frame, however fast somebody types
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(refilter);
  });
  form.addEventListener("reset", () => setTimeout(refilter));
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const node of uncoverButtons) node.addEventListener("click", toggleCover);
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", closePrompt);
  addEventListener("hashchange", readAddress);
  addEventListener("keydown", onKey);

  data.prompts.forEach(addToList);
  disableVainControls();
  data.models.forEach((name, model) => {
    byId("legend").append(element("span", {}, legendSymbol(model), name));
  });
  const hidden = [form, byId("shown"), byId("keys"), byId("browser"), ...uncoverButtons];
  for (const node of hidden) node.hidden = false;
  readAddress();
  started = true;
  performance.mark("ready");
})();
