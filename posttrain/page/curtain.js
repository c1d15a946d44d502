"use strict";

/* The blind mode, in which the rest of the page is not shown. The address asks for it, and it is
   set before anything is drawn, so that nothing is seen that a person who votes must not know. */

const BLIND = "#blind";

function drawCurtain() {
  if (location.hash === BLIND) document.documentElement.dataset.blind = "";
  else delete document.documentElement.dataset.blind;
}

drawCurtain();
addEventListener("hashchange", drawCurtain); // before the other scripts look at the address
