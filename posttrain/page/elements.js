"use strict";

/* What the other scripts make elements and texts with. Every text enters the page as text, never
   as markup. */

const SVG = "http://www.w3.org/2000/svg";

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

function byId(id) {
  return document.getElementById(id);
}

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

// A number with a true minus.
function format(value, digits = 2) {
  return value.toFixed(digits).replace("-", "−");
}

// A number of things, with the word for one of them.
function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}
