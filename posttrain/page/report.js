"use strict";

/* The answers of a run: filtered, ordered, read, compared and saved.

   The data are those of `collect_answers` in texts.py. */

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data.prompts.length) return;

  const form = byId("filters");
  const list = byId("list");
  const detail = byId("detail");
  const saveButtons = [byId("save-csv"), byId("save-json")];
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

  let shown = []; // the prompts in the list, in its order
  let visible = data.models.map((_, model) => model); // the models whose answers are shown
  let current = null; // the prompt that is open
  let query = null; // the pattern that is searched for
  let uncovered = false;
  let started = false; // from then on the address follows the reader

  // ---- models

  function symbol(model, attributes = {}) {
    const path = {d: SHAPES[data.markers[model]], fill: data.colours[model]};
    return drawn("path", {...path, ...attributes});
  }

  function legendSymbol(model) {
    const box = {class: "mark", viewBox: "-6 -6 12 12", "aria-hidden": "true"};
    return drawn("svg", box, symbol(model));
  }

  function isAlone() { // two models of several
    return visible.length === 2 && form.elements.left.value !== "";
  }

  // The models whose answers are shown: all, or the two that the reader has chosen.
  function chosenModels() {
    const {left, right} = form.elements;
    offer("right", left.value !== "");
    for (const option of right.options) option.disabled = option.value === left.value;
    if (right.value === left.value) {
      right.value = [...data.models].reverse().find((name) => name !== left.value);
    }
    if (left.value === "") return data.models.map((_, model) => model);
    return [left, right].map((control) => data.models.indexOf(control.value));
  }

  function showLegend() {
    const entries = visible.map((model) =>
      element("span", {}, legendSymbol(model), data.models[model]));
    byId("legend").replaceChildren(...entries);
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
    const replies = [...prompt.answers, ...prompt.references.filter(isHuman)];
    const texts = [...prompt.turns.map((turn) => turn[1]), ...replies.map((reply) => reply.text)];
    prompt.spread = rewards.length ? Math.max(...rewards) - Math.min(...rewards) : 0;
    prompt.searched = [prompt.id, ...texts].filter(Boolean);
  }

  // Whether the labels of the models that are shown differ.
  function differs(prompt) {
    return new Set(visible.map((model) => prompt.answers[model].label)).size > 1;
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

  // The rewards of the models that are shown on one scale, each model in its own lane.
  function strip(prompt) {
    const svg = drawn("svg", {"aria-hidden": "true"});
    const across = (reward) => `${position(reward, 2, 98).toFixed(1)}%`;
    const threshold = data.thresholds[prompt.kind];
    if (threshold !== null && lowest <= highest) {
      const x = across(threshold);
      svg.append(drawn("line", {class: "threshold", x1: x, x2: x, y1: 0, y2: 26}));
    }
    const lane = 18 / Math.max(visible.length - 1, 1);
    visible.forEach((model, row) => {
      const {reward} = prompt.answers[model];
      if (reward === null) return;
      const place = {x: across(reward), y: 4 + lane * row, overflow: "visible"};
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
    for (const model of visible) {
      const {reward, label} = prompt.answers[model];
      if (reward !== null) {
        parts.push(`${data.models[model]} ${format(reward)} ${label ?? ""}`.trim());
      }
    }
    return `${prompt.id}: ${parts.join(", ")}`;
  }

  function isFilled(prompt) {
    return buttonOf(prompt).children.length > 1;
  }

  function fill(prompt) {
    const row = buttonOf(prompt);
    const text = element("span", {class: "opening"}, opening(prompt));
    row.replaceChildren(row.firstChild, text, strip(prompt));
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
    const attributes = {type: "button", class: "row", tabindex: -1};
    const row = element("button", attributes, element("span", {class: "name"}, prompt.id));
    row.setAttribute("aria-label", spokenRewards(prompt));
    const item = element("li", {}, row);
    row.addEventListener("click", () => {
      row.focus({preventScroll: true});
      openPrompt(prompt, true);
    });
    itemOf.set(prompt, item);
    promptOf.set(item, prompt);
    sight.observe(item);
  }

  // Shows other models than before, in the rows that have been drawn and in what is said of all.
  function showModels(models) {
    if (models.join() === visible.join()) return;
    visible = models;
    showLegend();
    data.prompts.filter(isFilled).forEach(fill);
    for (const prompt of data.prompts) {
      buttonOf(prompt).setAttribute("aria-label", spokenRewards(prompt));
    }
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

  // Shows a control, or hides it where it has nothing to choose.
  function offer(name, isOffered) {
    const control = form.elements[name];
    control.disabled = !isOffered;
    control.closest("label").hidden = !isOffered;
  }

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
    const wanted = chosen("differ");
    const narrowed = CONDITIONS.some(chosen);
    const model = chosen("model") === "" ? null : chosenModel("model");
    const asked = model === null ? visible : [model];
    return (prompt) => {
      if (kind && prompt.kind !== kind) return false;
      if (wanted && differs(prompt) !== (wanted === "yes")) return false;
      if (narrowed && !asked.some((place) => fulfils(prompt.answers[place]))) return false;
      return !query || prompt.searched.some((text) => query.test(text));
    };
  }

  function sortShown() {
    const order = chosen("order");
    const key = ORDERS[order];
    offer("ranked", key && order !== "spread");
    offer("baseline", ["gain", "loss", "apart"].includes(order));
    if (!key) return;
    const [model, base] = ["ranked", "baseline"].map(chosenModel);
    shown.sort((a, b) => key(a, model, base) - key(b, model, base));
  }

  function refreshList() {
    const fulfils = answerFilter();
    if (data.models.length > 1) showModels(chosenModels());
    query = patternOf(chosen("text"));
    shown = data.prompts.filter(promptFilter(fulfils));
    sortShown();
    list.replaceChildren(...shown.map((prompt) => itemOf.get(prompt)));
    const hint = shown.length ? "" : ": no prompt matches. “Show all” removes the filters.";
    byId("count").textContent = `${shown.length} of ${data.prompts.length} prompts${hint}`;
    for (const node of saveButtons) node.disabled = !shown.length;
    showRates(fulfils);
  }

  // After the reader has changed a filter, the first of what is left is open.
  function refilter() {
    refreshList();
    openPrompt(current && (shown[0] ?? null));
  }

  function showRates(fulfils) {
    const table = byId("part");
    const names = visible.map((model) => data.models[model]);
    table.replaceChildren(tableRow(["Prompts in the list", ...names], "th"));
    for (const [kind, rate] of Object.entries(RATES)) {
      const labelled = shown.filter((prompt) => prompt.kind === kind && isLabelled(prompt));
      if (!labelled.length) continue;
      const cells = visible.map((model) => passRate(labelled, model));
      table.append(tableRow([`${rate} of the ${labelled.length} ${kind}`, ...cells]));
    }
    table.hidden = !CONDITIONS.some(chosen) && table.rows.length === 1;
    if (!CONDITIONS.some(chosen)) return;
    const counts = visible.map((model) =>
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

  // A part of a text as nodes, with what is searched for marked, and what only this text has.
  function marked(text, start, end, alone) {
    if (!query) return compared(text, start, end, alone);
    const nodes = [];
    let place = start;
    for (const match of text.slice(start, end).matchAll(new RegExp(query, "giu"))) {
      const [from, to] = [start + match.index, start + match.index + match[0].length];
      nodes.push(...compared(text, place, from, alone));
      nodes.push(element("mark", {}, ...compared(text, from, to, alone)));
      place = to;
      if (nodes.length > 2 * MOST_MATCHES) break;
    }
    nodes.push(...compared(text, place, end, alone));
    return nodes;
  }

  // A part of a text as nodes; what only this text has, of two, is in elements of its own.
  function compared(text, start, end, alone) {
    const nodes = [];
    let place = start;
    for (const [from, to] of alone?.ranges ?? []) {
      const [first, last] = [Math.max(from, start), Math.min(to, end)];
      if (first >= last) continue;
      nodes.push(text.slice(place, first), element(alone.tag, {}, text.slice(first, last)));
      place = last;
    }
    nodes.push(text.slice(place, end));
    return nodes;
  }

  // A text; what follows a human turn that the model opened is set off.
  function passage(text, alone, length = LONG) {
    const block = element("div", {class: "text", dir: "auto"});
    const end = Math.min(text.length, length);
    const turn = text.slice(0, end).search(/\n\nHuman:/);
    if (turn < 0) {
      block.append(...marked(text, 0, end, alone));
    } else {
      block.append(...marked(text, 0, turn, alone));
      block.append(element("span", {class: "runs-on"}, ...marked(text, turn + 2, end, alone)));
    }
    if (end < text.length) {
      const label = `Show all ${text.length.toLocaleString("en")} characters`;
      const whole = () => block.replaceWith(passage(text, alone, text.length));
      block.append("… ", button(label, whole));
    }
    return block;
  }

  function body(prompt, text, alone = null) {
    if (text === null) return element("p", {class: "none"}, "The text is not in this run.");
    if (isCovered(prompt)) return element("p", {class: "covered"}, "Covered.");
    if (text === "") return element("p", {class: "none"}, "Empty.");
    return passage(text, alone);
  }

  function turnBlock(prompt, [speaker, text]) {
    const name = element("span", {class: "who"}, speaker || "Before the first turn");
    return element("div", {class: `turn ${speaker}`}, name, body(prompt, text));
  }

  function card(prompt, name, answer, alone) {
    const title = element("h4", {}, name);
    if (answer.reward !== null) {
      title.append(element("output", {title: "reward"}, format(answer.reward)));
    }
    const text = body(prompt, answer.text, alone);
    return element("section", {class: "card", "aria-label": name}, title, facts(answer), text);
  }

  function answerCard(prompt, model, alone) {
    const node = card(prompt, data.models[model], prompt.answers[model], alone);
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
    const lanes = visible.map((model) =>
      ({name: data.models[model], reward: prompt.answers[model].reward, model}));
    if (!isAlone()) lanes.push(...prompt.references);
    const rewarded = lanes.filter((lane) => lane.reward !== null);
    if (!rewarded.length) return "";
    const width = Math.min(Math.max(detail.clientWidth, 320), 736); // letters keep their size
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
    nodes.push(scale(prompt), ...(isAlone() ? twoAnswers(prompt) : allAnswers(prompt)));
    return nodes;
  }

  // The answers of all models, and below them the human replies.
  function allAnswers(prompt) {
    const answers = visible.map((model) => answerCard(prompt, model));
    const humans = prompt.references.filter(isHuman);
    const replies = humans.map((reply) => card(prompt, reply.name, reply));
    return [answers, replies].map((cards) => element("div", {class: "cards"}, ...cards));
  }

  // The answers of two models, and which words only one of them has.
  function twoAnswers(prompt) {
    const texts = visible.map((model) => prompt.answers[model].text);
    const isReadable = !isCovered(prompt) && !texts.includes(null);
    const result = isReadable ? compareWords(...texts) : null;
    const cards = visible.map((model, side) => {
      const alone = result && {ranges: result.ranges[side], tag: side ? "ins" : "del"};
      return answerCard(prompt, model, alone);
    });
    const nodes = [element("div", {class: "cards two"}, ...cards)];
    if (isReadable) nodes.unshift(describeWords(result));
    return nodes;
  }

  function describeWords(result) {
    const line = element("p", {class: "keys", id: "difference"});
    if (!result) {
      line.append("These answers are too long to be compared word by word.");
      return line;
    }
    const [first, second] = visible.map((model) => data.models[model]);
    const [left, right] = result.alone.map((number) => count(number, "word"));
    line.append(
      `The two answers share ${count(result.common, "word")}. Only ${first} has `,
      element("del", {}, left), ", underlined with dashes, and only ", `${second} has `,
      element("ins", {}, right), ", underlined with a line.",
    );
    return line;
  }

  // ---- files and links

  // The answers of the models that are shown to the prompts in the list, as flat records.
  function listedRecords() {
    const records = [];
    for (const prompt of shown) {
      const turns = prompt.turns.map(([speaker, text]) => (speaker ? `${speaker}: ${text}` : text));
      for (const model of visible) {
        const {text, finish, tokens, reward, label, marks} = prompt.answers[model];
        records.push({
          id: prompt.id,
          kind: prompt.kind,
          model: data.models[model],
          prompt: turns.join("\n\n"),
          response: text,
          finish,
          tokens,
          reward,
          label,
          marks,
        });
      }
    }
    return records;
  }

  async function copyLink() {
    writeAddress(false);
    const copied = await copyText(location.href);
    byId("copied").textContent = copied
      ? "The link is copied."
      : "The browser did not allow it. The link is in the address bar.";
    setTimeout(() => byId("copied").replaceChildren(), 4000);
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
    byId("copy").disabled = !current;
  }

  function scrollToDetail() {
    const top = detail.getBoundingClientRect().top;
    if (top < bar.offsetHeight || top > innerHeight / 2) detail.scrollIntoView();
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

  // "#kind=helpful&prompt=helpful-04": what is chosen beside the defaults, the prompt that is open,
  // and the section to which a link of the bar led. An address without "=" is that of a section.
  const controls = [...form.elements].filter((control) => control.name);
  const defaults = {};
  for (const control of controls) defaults[control.name] = control.value;

  function stateOfReader() {
    const state = new URLSearchParams();
    for (const control of controls) {
      if (control.value !== defaults[control.name]) state.set(control.name, control.value);
    }
    if (current) state.set("prompt", current.id);
    return state;
  }

  function writeAddress(byReader) {
    if (!started) return;
    const state = stateOfReader();
    const hash = state.size ? `#${state}` : "";
    if (hash === location.hash) return;
    if (!hash && !location.hash.includes("=")) return; // a heading of the page stays
    const address = hash || location.pathname + location.search;
    if (byReader) history.pushState(null, "", address); // the prompt before can be gone back to
    else history.replaceState(null, "", address);
  }

  // A link to a section keeps the filters and the prompt, if the address holds them.
  function followLink(event) {
    if (!location.hash.includes("=")) return;
    event.preventDefault();
    const state = stateOfReader();
    state.set("section", event.currentTarget.hash.slice(1));
    if (`#${state}` !== location.hash) history.pushState(null, "", `#${state}`);
    byId(state.get("section")).scrollIntoView();
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
    const changed = controls.filter((control) => control.value !== defaults[control.name]);
    if (changed.some((control) => byId("more").contains(control))) byId("more").open = true;
    refreshList();
    const id = state.get("prompt");
    const prompt = data.prompts.find((candidate) => candidate.id === id);
    const isFiltered = location.hash && !isHeading;
    openPrompt(prompt ?? (isFiltered ? null : shown[0]));
    const section = links.has(state.get("section")) && byId(state.get("section"));
    if (section) section.scrollIntoView();
    else if (prompt) scrollToDetail();
    if (id && !prompt) byId("count").append(` (there is no prompt ${id})`);
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
  function hideVainControls() {
    const answers = data.prompts.flatMap((prompt) => prompt.answers);
    offerValues("label", answers.map((answer) => answer.label));
    offerValues("finish", answers.map((answer) => answer.finish));
    offerValues("mark", answers.flatMap((answer) => answer.marks));
    const isRewarded = knownRewards(answers).length > 0;
    for (const name of ["low", "high", "order"]) offer(name, isRewarded);
    byId("direction").hidden = !isRewarded;
    const isOfSeveral = data.models.length > 1;
    offer("left", isOfSeveral);
    for (const name of ["right", "ranked", "baseline"]) offer(name, false); // until one is needed
    offer("differ", isOfSeveral && !form.elements.label.disabled);
    offer("model", isOfSeveral && CONDITIONS.some((name) => !form.elements[name].disabled));
    const groups = [...form.querySelectorAll("fieldset")];
    for (const group of groups) group.hidden = !group.querySelector("label:not([hidden])");
    byId("more").hidden = groups.every((group) => group.hidden);
  }

  // Of the values of a filter, leaves those that an answer has.
  function offerValues(name, values) {
    const known = new Set(values);
    const control = form.elements[name];
    for (const option of [...control.options]) {
      if (option.value && !known.has(option.value)) option.remove();
    }
    offer(name, control.options.length > 1);
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
  byId("copy").addEventListener("click", copyLink);
  byId("save-csv").addEventListener("click", () => {
    saveFile(`${data.run}-answers.csv`, "text/csv;charset=utf-8", writeCsv(listedRecords()));
  });
  byId("save-json").addEventListener("click", () => {
    saveFile(`${data.run}-answers.json`, "application/json", writeJson(listedRecords()));
  });
  for (const link of links.values()) link.addEventListener("click", followLink);
  addEventListener("hashchange", readAddress);
  addEventListener("keydown", onKey);
  addEventListener("uncurtained", () => openPrompt(current));

  data.prompts.forEach(addToList);
  hideVainControls();
  showLegend();
  const hidden = [form, byId("shown"), byId("keys"), byId("browser")];
  for (const node of [...hidden, byId("save"), ...uncoverButtons]) node.hidden = false;
  readAddress();
  started = true;
  performance.mark("ready");
})();
