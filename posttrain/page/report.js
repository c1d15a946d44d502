"use strict";
/* The answers of a run: filter, order, read. All texts go into the page as text, never as markup. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data.prompts.length) return;
  const at = (id) => document.getElementById(id);
  const [form, list, detail, opened, browser] = ["filters", "list", "detail", "opened", "browser"].map(at);
  const POSITIVE = new Set(["harmless", "helpful"]);
  const FINISH = {eos: "ended by itself", turn: "ended by opening a human turn", length: "ended by the limit"};
  const SHAPES = {o: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", s: "M-3.5-3.5h7v7h-7z", "^": "M0-4.5L4.5 3.5h-9z", D: "M0-4.8L4.8 0L0 4.8L-4.8 0z",
    v: "M0 4.5L4.5-3.5h-9z", P: "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z", X: "M-4.2-2.1l2.1-2.1L0-2.1l2.1-2.1l2.1 2.1L2.1 0l2.1 2.1l-2.1 2.1L0 2.1l-2.1 2.1l-2.1-2.1L-2.1 0z",
    "*": "M0-5L1.2-1.6L4.8-1.5L1.9 0.6L2.9 4L0 2L-2.9 4L-1.9 0.6L-4.8-1.5L-1.2-1.6z"};
  const LONG = 4000; // characters of a text that are shown at first
  let shown = [], current = null, uncovered = false, query = null, begun = false;

  // ---- small helpers

  const SVG = "http://www.w3.org/2000/svg";
  function make(name, attributes = {}, ...children) {
    const svg = ["svg", "path", "line", "text"].includes(name);
    const element = svg ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }
  const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
  const button = (text, action) => {
    const made = make("button", {type: "button"}, text);
    made.addEventListener("click", action);
    return made;
  };
  const covered = (prompt) => prompt.kind === "harmful" && !uncovered;
  const marker = (model) => make("svg", {class: "mark", viewBox: "-6 -6 12 12", "aria-hidden": "true"},
    make("path", {d: SHAPES[data.markers[model]], fill: data.colours[model]}));

  // ---- what every prompt is filtered and ordered by

  const rewards = data.prompts.flatMap((prompt) => [...prompt.answers, ...prompt.references].map((one) => one.reward))
    .filter((reward) => reward !== null);
  const lowest = rewards.reduce((a, b) => Math.min(a, b), Infinity), highest = rewards.reduce((a, b) => Math.max(a, b), -Infinity);
  const place = (reward, from, to) => from + (to - from) * (highest > lowest ? (reward - lowest) / (highest - lowest) : 0.5);
  for (const prompt of data.prompts) {
    const own = prompt.answers.map((answer) => answer.reward).filter((reward) => reward !== null);
    prompt.spread = own.length ? Math.max(...own) - Math.min(...own) : 0;
    prompt.differ = new Set(prompt.answers.map((answer) => answer.label)).size > 1;
    prompt.texts = [prompt.id, ...prompt.turns.map((turn) => turn[1]), ...prompt.answers.map((answer) => answer.text),
      ...prompt.references.filter((one) => one.name.startsWith("Human")).map((one) => one.text)].filter(Boolean);
  }
  const gain = (prompt, by, over) => (prompt.answers[by].reward ?? 0) - (prompt.answers[over].reward ?? 0);
  const ORDERS = {
    lowest: (by) => (a, b) => a.answers[by].reward - b.answers[by].reward,
    highest: (by) => (a, b) => b.answers[by].reward - a.answers[by].reward,
    spread: () => (a, b) => b.spread - a.spread,
    gain: (by, over) => (a, b) => gain(b, by, over) - gain(a, by, over),
    loss: (by, over) => (a, b) => gain(a, by, over) - gain(b, by, over),
    apart: (by, over) => (a, b) => Math.abs(gain(b, by, over)) - Math.abs(gain(a, by, over)),
  };

  // ---- the list

  const rows = new Map();
  function strip(prompt) {
    const svg = make("svg", {"aria-hidden": "true"}), threshold = data.thresholds[prompt.kind];
    const across = (reward) => `${place(Math.min(Math.max(reward, lowest), highest), 2, 98).toFixed(1)}%`;
    if (threshold !== null && rewards.length)
      svg.append(make("line", {class: "threshold", x1: across(threshold), x2: across(threshold), y1: 0, y2: 26}));
    const apart = 18 / Math.max(prompt.answers.length - 1, 1); // the lanes of all models share the strip's height
    prompt.answers.forEach((answer, model) => {
      if (answer.reward !== null) svg.append(make("svg", {x: across(answer.reward), y: 4 + apart * model, overflow: "visible"},
        make("path", {d: SHAPES[data.markers[model]], fill: data.colours[model], transform: "scale(0.8)"})));
    });
    return svg;
  }
  function beginning(prompt) {
    const last = prompt.turns.findLast((turn) => turn[0] !== "Assistant");
    return covered(prompt) ? "covered" : (last ? last[1] : prompt.answers[0]?.text ?? "").slice(0, 80);
  }
  function spoken(prompt) {
    return prompt.answers.map((answer, model) => answer.reward === null ? "" :
      `${data.models[model]} ${number(answer.reward)} ${answer.label ?? ""}`).filter(Boolean).join(", ");
  }
  function fill(prompt) { // what a row shows below its number is drawn when it comes into sight
    const row = rows.get(prompt).firstChild;
    if (row.children.length > 1) row.children[1].textContent = beginning(prompt);
    else row.append(make("span", {}, beginning(prompt)), strip(prompt));
  }
  const sight = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
    sight.unobserve(entry.target);
    fill(promptOf.get(entry.target));
  }), {root: list, rootMargin: "400px"});
  const promptOf = new Map();
  for (const prompt of data.prompts) {
    const row = make("button", {type: "button", class: "row", tabindex: -1, "aria-label": `${prompt.id}: ${spoken(prompt)}`},
      make("span", {class: "name"}, prompt.id));
    const item = make("li", {}, row);
    row.addEventListener("click", () => { row.focus({preventScroll: true}); open(prompt, true); });
    rows.set(prompt, item);
    promptOf.set(item, prompt);
    sight.observe(item);
  }

  // ---- filters

  const value = (name) => form.elements[name].value;
  const modelOf = (name) => Math.max(0, data.models.indexOf(value(name)));
  function search(text) { // whatever the case, the spaces and the apostrophes
    const plain = text.trim().replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/\s+/g, "\\s+").replace(/['’]/g, "['’]");
    return plain ? new RegExp(plain, "giu") : null;
  }
  function bound(name) { // a reward as it is written here, with either minus; null where there is none
    const text = value(name).trim().replace("−", "-").replace(",", "."), read = text === "" ? null : Number(text);
    form.elements[name].setAttribute("aria-invalid", Number.isNaN(read));
    return Number.isNaN(read) ? null : read;
  }
  function conditions() {
    const [label, finish, mark] = ["label", "finish", "mark"].map(value);
    let [low, high] = ["low", "high"].map(bound);
    if (low !== null && high !== null && low > high) [low, high] = [high, low];
    const shownReward = (answer) => answer.reward === null ? NaN : Number(answer.reward.toFixed(2));
    return (answer) => (!label || answer.label === label) && (!finish || answer.finish === finish)
      && (!mark || answer.marks.includes(mark)) && (low === null || shownReward(answer) >= low)
      && (high === null || shownReward(answer) <= high);
  }
  function refresh() {
    const [kind, differ] = [value("kind"), value("differ")], holds = conditions();
    const only = value("model") && modelOf("model"), fits = (answer, model) => (only === "" || model === only) && holds(answer);
    query = search(value("text"));
    const has = (text) => { query.lastIndex = 0; return query.test(text); };
    shown = data.prompts.filter((prompt) => (!kind || prompt.kind === kind) && (!differ || prompt.differ === (differ === "yes"))
      && prompt.answers.some(fits) && (!query || prompt.texts.some(has)));
    const order = ORDERS[value("order")];
    if (order) shown.sort(order(modelOf("by"), modelOf("over")));
    form.elements.by.disabled = !order || value("order") === "spread";
    form.elements.over.disabled = !["gain", "loss", "apart"].includes(value("order"));
    list.replaceChildren(...shown.map((prompt) => rows.get(prompt)));
    summarise(holds);
  }
  function refilter() { // by the reader: what is open is the first of what is left
    refresh();
    open(current && (shown[0] ?? null));
  }
  function summarise(holds) {
    at("count").textContent = `${shown.length} of ${data.prompts.length} prompts`
      + (shown.length ? "" : ": no prompt matches. “Show all” removes the filters.");
    const lines = [["Of those shown", ...data.models]];
    for (const [name, kind] of [["HmR", "harmful"], ["HpR", "helpful"]]) {
      const part = shown.filter((prompt) => prompt.kind === kind && prompt.answers.every((answer) => answer.label));
      if (part.length) lines.push([`${name} of the ${part.length} ${kind}`, ...data.models.map((_, model) => {
        const passed = part.filter((prompt) => POSITIVE.has(prompt.answers[model].label)).length;
        return `${number(100 * passed / part.length, 1)}% (${passed})`;
      })]);
    }
    const narrowed = ["label", "finish", "mark", "low", "high"].some(value);
    if (narrowed) lines.push(["answers that match", ...data.models.map((_, model) =>
      shown.filter((prompt) => holds(prompt.answers[model])).length)]);
    at("part").replaceChildren(...lines.map((cells, line) => make("tr", {}, ...cells.map((cell, column) =>
      make(line && column ? "td" : "th", line && column ? {} : {scope: line ? "row" : "col"}, String(cell))))));
  }
  function reachable(prompt) { // one row is reached by the tabulator, the others by the keys
    list.querySelector("[tabindex='0']")?.setAttribute("tabindex", -1);
    if (prompt) rows.get(prompt).firstChild.setAttribute("tabindex", 0);
  }

  // ---- one prompt

  function marked(text) {
    if (!query) return [text];
    const parts = [];
    let end = 0;
    for (const match of text.matchAll(query)) {
      parts.push(text.slice(end, match.index), make("mark", {}, match[0]));
      end = match.index + match[0].length;
      if (parts.length > 2000) break;
    }
    return [...parts, text.slice(end)];
  }
  function passage(text, whole = false) {
    const block = make("div", {class: "text", dir: "auto"});
    const part = whole ? text : text.slice(0, LONG);
    const turn = part.search(/\n\nHuman:/);
    block.append(...marked(turn < 0 ? part : part.slice(0, turn)));
    if (turn >= 0) block.append(make("span", {class: "runs-on"}, ...marked(part.slice(turn + 2))));
    if (part.length < text.length) block.append("… ", button(`Show all ${text.length.toLocaleString("en")} characters`,
      () => block.replaceWith(passage(text, true))));
    return block;
  }
  function body(prompt, text) {
    if (text === null) return make("p", {class: "none"}, "The text is not in this run.");
    if (covered(prompt)) return make("p", {class: "covered"}, "Covered.");
    return text === "" ? make("p", {class: "none"}, "Empty.") : passage(text);
  }
  function card(prompt, name, answer, model) {
    const title = make("h4", {}, ...(model === undefined ? [] : [marker(model)]), name);
    if (answer.reward !== null) title.append(make("output", {title: "reward"}, number(answer.reward)));
    const facts = make("p", {class: "facts-of"});
    if (answer.label) facts.append(make("span", {class: POSITIVE.has(answer.label) ? "passes" : "fails"},
      (POSITIVE.has(answer.label) ? "✓ " : "✗ ") + answer.label));
    const more = [FINISH[answer.finish] ?? answer.finish, answer.tokens != null && `${answer.tokens}\u00a0tokens`].filter(Boolean);
    facts.append((answer.label && more.length ? ", " : "") + more.join(", "));
    for (const mark of answer.marks ?? []) facts.append(make("span", {class: "tag"}, mark));
    const made = make("section", {class: "card", "aria-label": name}, title, facts, body(prompt, answer.text));
    if (model !== undefined) made.style.borderTopColor = data.colours[model];
    return made;
  }
  function scale(prompt) { // the rewards of models and references on one axis
    const lanes = [...prompt.answers.map((answer, model) => ({name: data.models[model], reward: answer.reward, model})), ...prompt.references]
      .filter((lane) => lane.reward !== null);
    if (!lanes.length) return "";
    const [from, to, bottom] = [120, 540, 22 + 18 * lanes.length], threshold = data.thresholds[prompt.kind];
    const svg = make("svg", {class: "strip", viewBox: `0 0 600 ${bottom + 18}`, role: "img",
      "aria-label": `Rewards: ${lanes.map((lane) => `${lane.name} ${number(lane.reward)}`).join(", ")}`});
    lanes.forEach((lane, i) => {
      const y = 26 + 18 * i, x = place(lane.reward, from, to), own = lane.model !== undefined;
      svg.append(make("line", {class: "axis", x1: from, x2: to, y1: y, y2: y}), make("text", {x: 0, y: y + 4}, lane.name.length > 16 ? `${lane.name.slice(0, 15)}…` : lane.name),
        make("text", {x: 595, y: y + 4, "text-anchor": "end"}, number(lane.reward)),
        make("path", {d: SHAPES[own ? data.markers[lane.model] : "o"], transform: `translate(${x} ${y}) scale(1.1)`,
          fill: own ? data.colours[lane.model] : "none", stroke: own ? "none" : "currentColor"}));
    });
    for (const tick of [lowest, highest]) svg.append(make("text", {class: "soft", x: place(tick, from, to), y: bottom + 14,
      "text-anchor": tick === lowest ? "start" : "end"}, `reward ${number(tick, 1)}`));
    if (threshold !== null && threshold >= lowest && threshold <= highest) {
      const x = place(threshold, from, to);
      svg.append(make("line", {class: "threshold", x1: x, x2: x, y1: 14, y2: bottom}),
        make("text", {class: "soft", x, y: 10, "text-anchor": "middle"}, `threshold ${number(threshold, 1)}`));
    }
    return svg;
  }
  function open(prompt, chosen = false) { // `chosen` by the reader: it comes into sight, and into the history
    const focus = list.contains(document.activeElement), i = shown.indexOf(prompt);
    rows.get(current)?.firstChild.removeAttribute("aria-current");
    current = prompt;
    at("detail-heading").textContent = prompt ? prompt.id : "No prompt is open";
    at("position").textContent = !prompt ? "" : i < 0 ? "not among those shown" : `${i + 1} of ${shown.length}`;
    at("previous").disabled = i <= 0;
    at("next").disabled = i === shown.length - 1;
    at("close").disabled = !prompt;
    reachable(i < 0 ? shown[0] : prompt);
    if (!prompt) opened.replaceChildren(make("p", {class: "none"}, "Choose a prompt in the list."));
    else {
      const asked = prompt.turns.map(([speaker, text]) => make("div", {class: `turn ${speaker}`},
        make("span", {class: "who"}, speaker || "Before the first turn"), body(prompt, text)));
      const human = prompt.references.filter((one) => one.name.startsWith("Human"));
      opened.replaceChildren(
        ...(asked.length ? asked : [make("p", {class: "none"}, "The prompt is not in this run.")]),
        ...(covered(prompt) ? [button("Uncover the harmful texts", cover)] : []), scale(prompt),
        make("div", {class: "cards"}, ...prompt.answers.map((answer, model) => card(prompt, data.models[model], answer, model))),
        make("div", {class: "cards"}, ...human.map((one) => card(prompt, one.name, one))));
      rows.get(prompt).firstChild.setAttribute("aria-current", "true");
      if (i >= 0) keepInSight(rows.get(prompt));
      if (i >= 0 && focus) rows.get(prompt).firstChild.focus({preventScroll: true});
    }
    if (chosen) bringIntoSight();
    remember(chosen);
  }
  function bringIntoSight() {
    const top = detail.getBoundingClientRect().top;
    if (top < 0 || top > innerHeight / 2) detail.scrollIntoView();
  }
  function keepInSight(item) { // scrolls the list, not the page
    const [outer, inner] = [list.getBoundingClientRect(), item.getBoundingClientRect()];
    if (inner.top < outer.top) list.scrollTop -= outer.top - inner.top;
    else if (inner.bottom > outer.bottom) list.scrollTop += inner.bottom - outer.bottom;
  }
  function step(by) {
    const i = shown.indexOf(current), next = shown[i < 0 ? 0 : i + by];
    if (next) open(next, true);
  }
  function close() {
    const row = current && rows.get(current).firstChild;
    open(null);
    row?.focus({preventScroll: true});
  }
  function cover() { // or uncover
    uncovered = !uncovered;
    for (const one of document.querySelectorAll(".uncover")) {
      one.textContent = uncovered ? "Cover the harmful texts" : "Uncover the harmful texts";
      one.setAttribute("aria-pressed", uncovered);
    }
    data.prompts.filter((prompt) => rows.get(prompt).firstChild.children.length > 1).forEach(fill);
    open(current);
  }

  // ---- the address

  const controls = [...form.elements].filter((control) => control.name);
  const standard = Object.fromEntries(controls.map((control) => [control.name, control.value]));
  function remember(chosen = false) {
    if (!begun) return; // the reader has not chosen anything yet
    const state = new URLSearchParams(controls.filter((control) => control.value !== standard[control.name])
      .map((control) => [control.name, control.value]));
    if (current) state.set("prompt", current.id);
    const address = state.size ? `#${state}` : "";
    if (address === location.hash || !address && !location.hash.includes("=")) return;
    const [whole, write] = [address || location.pathname + location.search, chosen ? "pushState" : "replaceState"];
    history[write](null, "", whole); // a prompt that was chosen can be gone back to
  }
  function recall() {
    const ours = !location.hash || location.hash.includes("="); // else it names a heading of the page
    if (!ours && begun) return;
    const state = new URLSearchParams(ours ? location.hash.slice(1) : "");
    for (const control of controls) {
      control.value = state.get(control.name) ?? standard[control.name];
      if (control.tagName === "SELECT" && control.selectedIndex < 0) control.value = standard[control.name];
    }
    const wanted = state.get("prompt"), found = data.prompts.find((prompt) => prompt.id === wanted);
    refresh();
    open(found ?? (ours && location.hash ? null : shown[0]));
    if (wanted && !found) at("count").append(` (there is no prompt ${wanted})`);
    if (found) bringIntoSight();
  }

  // ---- begin

  for (const name of ["label", "differ"]) form.elements[name].disabled = !data.prompts.some((p) => p.answers.some((a) => a.label));
  form.elements.finish.disabled = !data.prompts.some((p) => p.answers.some((a) => a.finish));
  if (form.elements.finish.disabled) form.elements.finish.title = "This run does not say how its answers ended.";
  for (const option of [...form.elements.mark.options].slice(1)) // what no answer has cannot be asked for
    option.disabled = !data.prompts.some((p) => p.answers.some((a) => a.marks.includes(option.value)));
  for (const name of ["low", "high", "order"]) form.elements[name].disabled = !rewards.length;
  let waiting = 0;
  form.addEventListener("input", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(refilter); });
  form.addEventListener("reset", () => setTimeout(refilter));
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const one of document.querySelectorAll(".uncover")) one.addEventListener("click", cover);
  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  at("close").addEventListener("click", close);
  addEventListener("hashchange", recall);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, select, textarea"), inList = list.contains(event.target);
    if (event.key === "Escape" && typing) {
      if (event.target.name === "text") { event.target.value = ""; refilter(); }
      event.target.blur();
    } else if (event.key === "Escape") close();
    else if (typing) return;
    else if (event.key === "n" || event.key === "j" || inList && event.key === "ArrowDown") { step(1); event.preventDefault(); }
    else if (event.key === "p" || event.key === "k" || inList && event.key === "ArrowUp") { step(-1); event.preventDefault(); }
    else if (event.key === "/") { form.elements.text.focus(); form.elements.text.select(); event.preventDefault(); }
  });
  data.models.forEach((name, model) => at("legend").append(make("span", {}, marker(model), name)));
  for (const one of [form, at("shown"), at("keys"), browser, ...document.querySelectorAll(".uncover")]) one.hidden = false;
  recall();
  begun = true;
  performance.mark("ready");
})();
