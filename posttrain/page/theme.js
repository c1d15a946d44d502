"use strict";

/* The theme: as the reader's system has it, or as the reader has chosen. It is set before anything
   is drawn, and remembered where the browser allows it. */

const THEME_KEY = "posttrain-theme";

function rememberedTheme() {
  try {
    return localStorage.getItem(THEME_KEY);
  } catch { // storage may be switched off
    return null;
  }
}

function rememberTheme(theme) {
  try {
    localStorage.setItem(THEME_KEY, theme);
  } catch {
    // It is in force all the same, until the page is closed.
  }
}

function applyTheme(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

applyTheme(rememberedTheme());
