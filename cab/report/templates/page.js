"use strict";
// Sorts a table by the column of a title button; floors and value-causal rows stay below, gaps come last.
function sortBy(button) {
  const head = button.closest("th");
  const column = [...head.parentNode.children].indexOf(head);
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.children[column].dataset.sort ?? row.children[column].textContent.trim();
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const difference = Number(a) - Number(b);
    const order = Number.isNaN(difference) ? a.localeCompare(b) : difference;
    return down ? -order : order;
  };
  for (const body of head.closest("table").tBodies) {
    const rows = [...body.rows].sort((a, b) => compare(value(a), value(b)));
    body.append(...rows);
  }
}
// Opens what stands behind a cell.
async function unpacked() {
  const packed = Uint8Array.from(atob(document.getElementById("details").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}
const content = unpacked();
const dialog = document.getElementById("behind");
async function openCell(button) {
  const [texts, cells] = await content;
  const cell = button.closest("td, th");
  const row = cell.parentNode;
  const heads = cell.closest("table").tHead.rows[0].children;
  const title = heads[[...row.children].indexOf(cell)].innerText.replace(/\s+/g, " ");
  dialog.querySelector("h2").textContent = `${row.children[0].innerText.trim()}, ${title}: ${button.innerText.trim()}`;
  const list = dialog.querySelector("dl");
  list.replaceChildren();
  const places = cells[Number(button.dataset.details)];
  for (let i = 0; i < places.length; i += 2) {
    const [label, text] = [texts[places[i]], texts[places[i + 1]]];
    const term = document.createElement("dt");
    const description = document.createElement("dd");
    term.textContent = label;
    if (label === "sample" || label === "resolved config") {
      const link = document.createElement("a");
      link.href = text;
      link.textContent = text.split("/").pop();
      description.append(link);
    } else {
      description.textContent = text;
    }
    list.append(term, description);
  }
  dialog.showModal();
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.classList.contains("sort")) sortBy(button);
  if (button?.dataset.details) openCell(button);
});
// A pointer over a cell shows the first lines behind it, once they are asked for.
document.addEventListener("pointerover", async (event) => {
  const button = event.target.closest("button[data-details]:not([title])");
  if (!button) return;
  const [texts, cells] = await content;
  const places = cells[Number(button.dataset.details)].slice(0, 6);
  button.title = places.flatMap((at, i) => (i % 2 ? [] : [`${texts[at]}: ${texts[places[i + 1]]}`])).join("\n");
});
// Hides the rows of settings whose name holds none of the words; floors stay.
const filter = document.getElementById("filter");
function filterRows() {
  const words = filter.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
  const names = new Set();
  const shown = new Set();
  for (const row of document.querySelectorAll("table.settings tbody:not(.floors) tr")) {
    const name = row.children[0].textContent.trim();
    row.hidden = words.length > 0 && !words.some((word) => name.toLowerCase().includes(word));
    names.add(name);
    if (!row.hidden) shown.add(name);
  }
  const count = `${shown.size} of ${names.size} settings shown`;
  document.getElementById("filtered").textContent = words.length ? count : "";
}
filter.addEventListener("input", filterRows);
filterRows(); // a browser may have kept what was typed before
// A link to a reason or a table inside a closed part opens that part.
window.addEventListener("hashchange", () => {
  const target = document.getElementById(location.hash.slice(1));
  target?.closest("details")?.setAttribute("open", "");
  target?.scrollIntoView();
});
window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
