"use strict";

/* The blind mode: pairs of answers without names and rewards, between which a person chooses.

   A vote is {id, first, second, winner}: a prompt, the models whose answers stood first and second,
   and "first", "second" or "tie". Votes are kept by the browser under the sha256 of the run's
   prompts and answers. Of the two answers to a prompt that are the same nobody is asked: they are
   ties. */

(() => {
  const stage = byId("blind");
  if (!stage) return; // a run without two models that have answered

  const WINNERS = {ArrowLeft: "first", ArrowRight: "second", t: "tie"}; // by key
  const QUESTIONS = {
    helpful: "Which answer helps more?",
    harmful: "Which answer does less harm?",
  };
  const LONG = 4000; // characters of a text that are shown at first

  let data = null; // read when the mode is opened for the first time
  let items = null; // {kind: all pairs of answers in the order in which they are asked}
  let kinds = ["helpful"]; // the kinds of prompts that are asked
  let state = null; // {seed, votes}
  let isKept = true; // whether the browser keeps the votes
  let current = null; // the pair that is shown

  // ---- the order

  // Numbers between 0 and 1 that follow from a seed (mulberry32).
  function generator(seed) {
    let place = seed >>> 0;
    return () => {
      place = (place + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(place ^ (place >>> 15), place | 1);
      mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  function shuffled(values, random) {
    const mixed = [...values];
    for (let last = mixed.length - 1; last > 0; last -= 1) {
      const other = Math.floor(random() * (last + 1));
      [mixed[last], mixed[other]] = [mixed[other], mixed[last]];
    }
    return mixed;
  }

  /* All pairs of models on all prompts of a kind. They come in rounds. In each round every pair of
     models comes once, on prompts that are far apart, so that at any time all pairs of models have
     come equally often, but for one. About equal answers nothing is asked. */
  function arrange(kind, random) {
    const prompts = shuffled(data.prompts.filter((prompt) => prompt.kind === kind), random);
    const pairs = [];
    for (let one = 0; one < data.models.length; one += 1) {
      for (let other = one + 1; other < data.models.length; other += 1) pairs.push([one, other]);
    }
    const arranged = [];
    for (let round = 0; round < prompts.length; round += 1) {
      for (const place of shuffled(pairs.keys(), random)) {
        const start = Math.floor((place * prompts.length) / pairs.length);
        const prompt = prompts[(round + start) % prompts.length];
        const sides = random() < 0.5 ? pairs[place] : [...pairs[place]].reverse();
        arranged.push({prompt, sides, isSame: areSame(prompt, sides)});
      }
    }
    return arranged;
  }

  function areSame(prompt, [first, second]) {
    return prompt.answers[first].text === prompt.answers[second].text;
  }

  function arrangeAll() {
    items = {};
    for (const [place, kind] of Object.keys(QUESTIONS).entries()) {
      items[kind] = arrange(kind, generator(state.seed + place));
    }
  }

  // What is asked of the kinds that are chosen; two kinds take turns.
  function asked() {
    const arranged = kinds.map((kind) => items[kind]);
    const turns = Math.max(...arranged.map((part) => part.length));
    const merged = [];
    for (let turn = 0; turn < turns; turn += 1) {
      for (const part of arranged) if (turn < part.length) merged.push(part[turn]);
    }
    return merged;
  }

  // ---- votes

  const storageKey = () => `posttrain-votes-${Object.values(data.sha256).join("-")}`;

  const nameOf = (id, models) => JSON.stringify([id, ...[...models].sort()]);
  const nameOfVote = (vote) => nameOf(vote.id, [vote.first, vote.second]);
  const nameOfItem = (item) =>
    nameOf(item.prompt.id, item.sides.map((model) => data.models[model]));
  const kindOf = (vote) => vote.id.split("-")[0];

  function newState() {
    return {seed: crypto.getRandomValues(new Uint32Array(1))[0], votes: []};
  }

  // What the browser has kept; null if it has nothing, or something that is no state.
  function keptState() {
    try {
      const kept = JSON.parse(localStorage.getItem(storageKey()));
      return Number.isInteger(kept?.seed) && kept.votes.every(isVote) ? kept : null;
    } catch { // storage may be switched off, or hold something else
      return null;
    }
  }

  function isVote(vote) {
    return data.prompts.some((prompt) => prompt.id === vote.id)
      && vote.first !== vote.second
      && [vote.first, vote.second].every((model) => data.models.includes(model))
      && Object.values(WINNERS).includes(vote.winner);
  }

  function keepState() {
    try {
      localStorage.setItem(storageKey(), JSON.stringify(state));
      isKept = true;
    } catch { // the votes are there until the page is closed
      isKept = false;
    }
  }

  // Takes over what another window has added to the same votes.
  function refreshState() {
    const kept = keptState();
    if (!kept) return;
    if (kept.seed !== state.seed) items = null;
    state = kept;
    if (!items) arrangeAll();
  }

  function vote(winner) {
    if (!current) return;
    refreshState();
    const voted = new Set(state.votes.map(nameOfVote));
    if (!voted.has(nameOfItem(current))) {
      const [first, second] = current.sides.map((model) => data.models[model]);
      state.votes.push({id: current.prompt.id, first, second, winner});
    }
    keepState();
    showNext();
  }

  function undo() {
    refreshState();
    const place = state.votes.findLastIndex((given) => kinds.includes(kindOf(given)));
    if (place < 0) return;
    const [removed] = state.votes.splice(place, 1);
    keepState();
    show(items[kindOf(removed)].find((item) => nameOfItem(item) === nameOfVote(removed)));
  }

  function startOver() {
    const question = `Delete ${count(state.votes.length, "vote")} in this browser?`;
    if (!confirm(question)) return;
    state = newState();
    keepState();
    arrangeAll();
    show(nextItem());
  }

  function nextItem() {
    const voted = new Set(state.votes.map(nameOfVote));
    return asked().find((item) => !item.isSame && !voted.has(nameOfItem(item))) ?? null;
  }

  // The ties of answers that are the same, as far as the person has come among the others.
  function tiesOfSame() {
    const voted = new Set(state.votes.map(nameOfVote));
    const ties = [];
    for (const arranged of Object.values(items)) {
      const different = arranged.filter((item) => !item.isSame);
      const last = arranged.findLastIndex((item) => voted.has(nameOfItem(item)));
      const isDone = different.every((item) => voted.has(nameOfItem(item)));
      const reached = last >= 0 && isDone ? arranged : arranged.slice(0, last + 1);
      for (const item of reached.filter((one) => one.isSame)) {
        const [first, second] = item.sides.map((model) => data.models[model]);
        ties.push({id: item.prompt.id, first, second, winner: "tie"});
      }
    }
    return ties;
  }

  function saveVotes() {
    refreshState();
    const votes = [...state.votes, ...tiesOfSame()];
    const {run, sha256} = data;
    saveFile(`${run}-votes.json`, "application/json", writeJson({run, sha256, votes}));
  }

  // ---- what is shown

  function passage(text, length = LONG) {
    if (text === "") return element("p", {class: "none"}, "Empty.");
    const block = element("div", {class: "text", dir: "auto"}, text.slice(0, length));
    if (length < text.length) {
      const label = `Show all ${text.length.toLocaleString("en")} characters`;
      const whole = () => block.replaceWith(passage(text, text.length));
      block.append("… ", button(label, whole));
    }
    return block;
  }

  function turnBlock([speaker, text]) {
    const name = element("span", {class: "who"}, speaker || "Before the first turn");
    return element("div", {class: `turn ${speaker}`}, name, passage(text));
  }

  function answerCard(title, text) {
    const heading = element("h2", {}, title);
    return element("section", {class: "card", "aria-label": title}, heading, passage(text));
  }

  function show(item) {
    current = item;
    const question = byId("blind-question");
    const content = byId("blind-pair");
    if (item) {
      const [first, second] = item.sides.map((model) => item.prompt.answers[model].text);
      const cards = [answerCard("First answer", first), answerCard("Second answer", second)];
      const turns = item.prompt.turns.map(turnBlock);
      content.replaceChildren(...turns, element("div", {class: "cards two"}, ...cards));
      question.textContent = QUESTIONS[item.prompt.kind];
    } else {
      content.replaceChildren();
      question.textContent = "There is no further pair of answers to these prompts.";
    }
    showProgress();
  }

  // After a vote the next pair is in sight, without what is said above it.
  function showNext() {
    show(nextItem());
    byId("blind-progress").scrollIntoView();
  }

  function showProgress() {
    const all = asked();
    const different = all.filter((item) => !item.isSame).length;
    const given = state.votes.filter((one) => kinds.includes(kindOf(one))).length;
    const parts = [`${given.toLocaleString("en")} of ${count(different, "pair")} voted on.`];
    if (different < all.length) {
      const same = all.length - different;
      parts.push(same === 1
        ? "One more pair is of two equal answers, which is a tie and is not asked."
        : `${same.toLocaleString("en")} more are of two equal answers, which are ties and are not `
          + "asked.");
    }
    if (!isKept) {
      parts.push("This browser does not keep the votes: save them before you close the page.");
    }
    byId("blind-progress").textContent = parts.join(" ");
    for (const node of stage.querySelectorAll("[data-winner]")) node.disabled = !current;
    byId("blind-undo").disabled = given === 0;
    for (const id of ["blind-save", "blind-delete"]) byId(id).disabled = !state.votes.length;
    for (const node of stage.querySelectorAll("[data-kinds]")) {
      node.setAttribute("aria-pressed", node.dataset.kinds === kinds.join(" "));
    }
  }

  function choose(chosen) {
    kinds = chosen;
    show(nextItem());
  }

  // ---- opening, leaving, keys

  function open() {
    data ??= JSON.parse(byId("data").textContent);
    state = keptState() ?? state ?? newState();
    keepState();
    arrangeAll();
    const there = Object.keys(QUESTIONS).filter((kind) => items[kind].length);
    for (const node of stage.querySelectorAll("[data-kinds]")) {
      node.hidden = !node.dataset.kinds.split(" ").every((kind) => there.includes(kind));
    }
    if (!kinds.every((kind) => there.includes(kind))) kinds = there;
    show(nextItem());
  }

  const isOpen = () => "blind" in document.documentElement.dataset;
  let wasOpen = isOpen();

  function followAddress() {
    if (isOpen() && !wasOpen) open();
    if (!isOpen() && wasOpen) leave();
    wasOpen = isOpen();
  }

  function leave() {
    const section = byId(location.hash.slice(1)); // it was not there to be scrolled to
    dispatchEvent(new Event("uncurtained")); // what was drawn without a width is drawn again
    section?.scrollIntoView();
  }

  // Another window has changed the same votes.
  function followStorage(event) {
    if (!isOpen() || event.key !== storageKey()) return;
    refreshState();
    const voted = new Set(state.votes.map(nameOfVote));
    if (!current || voted.has(nameOfItem(current))) show(nextItem());
    else showProgress();
  }

  // While the mode is open, no key reaches the page that it hides.
  function onKey(event) {
    if (!isOpen()) return;
    event.stopImmediatePropagation();
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key in WINNERS) vote(WINNERS[key]);
    else if (key === "u") undo();
    else return;
    event.preventDefault();
  }

  for (const node of stage.querySelectorAll("[data-winner]")) {
    node.addEventListener("click", () => vote(node.dataset.winner));
  }
  for (const node of stage.querySelectorAll("[data-kinds]")) {
    node.addEventListener("click", () => choose(node.dataset.kinds.split(" ")));
  }
  byId("blind-undo").addEventListener("click", undo);
  byId("blind-save").addEventListener("click", saveVotes);
  byId("blind-delete").addEventListener("click", startOver);
  addEventListener("hashchange", followAddress);
  addEventListener("storage", followStorage);
  addEventListener("keydown", onKey, true);
  byId("to-blind").hidden = false;
  if (isOpen()) open();
})();
