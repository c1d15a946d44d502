"use strict";

/* The bar at the top: how high it is, which section is being read, and the theme. And on paper
   everything that is folded is open. */

const bar = document.querySelector("nav");
const links = new Map();
for (const link of bar.querySelectorAll("a")) links.set(link.hash.slice(1), link);

// What the browser scrolls to, and what stays in sight, lies below the bar.
new ResizeObserver(() => {
  document.documentElement.style.setProperty("--bar", `${bar.offsetHeight}px`);
}).observe(bar);

// A section is being read while it crosses a line in the upper part of the window.
const reading = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const link = links.get(entry.target.id);
    if (entry.isIntersecting) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}, {rootMargin: "-25% 0px -74% 0px"});
for (const id of links.keys()) reading.observe(byId(id));

// Two frames after the page is there, what is below the answers is laid out too.
addEventListener("load", () => {
  requestAnimationFrame(() => requestAnimationFrame(() => {
    document.documentElement.dataset.drawn = "";
  }));
});

const theme = byId("theme");
theme.value = document.documentElement.dataset.theme ?? "auto";
theme.addEventListener("change", () => {
  applyTheme(theme.value);
  rememberTheme(theme.value);
});
theme.closest("label").hidden = false;

let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  for (const part of unfolded) part.open = true;
});
addEventListener("afterprint", () => {
  for (const part of unfolded) part.open = false;
});
