"use strict";

/* Tables that the reader orders by a column: ascending, descending, and as they were. */

const ORDER_AFTER = {none: "ascending", ascending: "descending", descending: "none"};
const LEADING_NUMBER = /^[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?/;

// The number that a cell begins with: "−3.60 [−4.08, −3.13]" is −3.6, and "86% [73, 92]" is 86.
function numberOf(text) {
  const match = text.trim().replaceAll("−", "-").match(LEADING_NUMBER);
  return match ? Number(match[0].replaceAll(",", "")) : null;
}

// A function that orders texts: by their numbers if all that are not empty begin with one.
function comparisonOf(texts) {
  const known = texts.filter((text) => text !== "");
  if (known.every((text) => numberOf(text) !== null)) return (a, b) => numberOf(a) - numberOf(b);
  return new Intl.Collator("en", {numeric: true}).compare;
}

// Orders the rows of each body of a table by a column; rows without a value stay at the end.
function sortRows(table, column, direction, originals) {
  for (const body of table.tBodies) {
    const rows = [...originals.get(body)];
    if (direction !== "none") {
      const text = (row) => row.cells[column].textContent.trim();
      const compare = comparisonOf(rows.map(text));
      const sign = direction === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        const isLast = Number(text(a) === "") - Number(text(b) === "");
        return isLast || sign * compare(text(a), text(b));
      });
    }
    body.append(...rows);
  }
}

function makeSortable(table) {
  const originals = new Map([...table.tBodies].map((body) => [body, [...body.rows]]));
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const node = button(head.textContent, () => {
      const direction = ORDER_AFTER[head.getAttribute("aria-sort") ?? "none"];
      for (const other of heads) other.removeAttribute("aria-sort");
      if (direction !== "none") head.setAttribute("aria-sort", direction);
      sortRows(table, column, direction, originals);
    });
    node.title = "Sort by this column";
    head.replaceChildren(node);
  });
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
