"use strict";

/* Answers as files that the browser saves, and texts for the clipboard. Nothing leaves the page. */

const LINE_END = "\r\n"; // of a CSV file (RFC 4180)
const FORMULA = /^[=+\-@\t\r\n]/; // how a text begins that a spreadsheet would compute

/* Write records as CSV. It begins with a byte order mark, without which spreadsheets take UTF-8 for
   another encoding. */
function writeCsv(records) {
  const names = Object.keys(records[0] ?? {});
  const lines = [names, ...records.map((record) => names.map((name) => record[name]))];
  return `\ufeff${lines.map((cells) => cells.map(csvCell).join(",") + LINE_END).join("")}`;
}

// A cell: numbers as they are, texts made harmless and quoted where they have to be.
function csvCell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const joined = Array.isArray(value) ? value.join("; ") : String(value);
  const text = FORMULA.test(joined) ? `'${joined}` : joined;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function writeJson(records) {
  return `${JSON.stringify(records, null, 2)}\n`;
}

function saveFile(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], {type}));
  const link = element("a", {href: address, download: name.replace(/[^\p{L}\p{N}.-]+/gu, "_")});
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // not before it has been read
}

// Puts a text on the clipboard and tells whether that succeeded.
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // a page from a file may have no clipboard, or not be allowed to use it
    return copySelected(text);
  }
}

// The older way: the text is selected in a field, and the browser copies what is selected.
function copySelected(text) {
  const focused = document.activeElement;
  const field = element("textarea", {"aria-hidden": "true", class: "unseen", readonly: ""});
  field.value = text;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  focused?.focus({preventScroll: true});
  return copied;
}
