"use strict";
// What a cell is sorted by: its number, its text, or null, which comes last either way.
const value = (row, column) => {
  const text = row.cells[column].innerText.trim();
  const number = parseFloat(text.replace("<", ""));
  return text === "-" || text === "" ? null : Number.isNaN(number) ? text.toLowerCase() : number;
};
const compare = (a, b, sign) => {
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (a < b ? -1 : a > b ? 1 : 0);
};
for (const heading of document.querySelectorAll(".board th")) {
  heading.querySelector("button").addEventListener("click", () => {
    const before = heading.getAttribute("aria-sort"), isText = heading.classList.contains("words");
    const rises = before === "none" ? isText : before === "descending";
    for (const other of heading.parentNode.cells) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", rises ? "ascending" : "descending");
    const body = heading.closest("table").tBodies[0], column = heading.cellIndex, sign = rises ? 1 : -1;
    body.append(...[...body.rows].sort((a, b) => compare(value(a, column), value(b, column), sign)));
  });
}
const form = document.getElementById("filter");
form.addEventListener("input", () => {
  const words = form.elements.words.value.toLowerCase().split(/\s+/);
  const kinds = new Set([...form.querySelectorAll("input[name=kind]:checked")].map((box) => box.value));
  for (const row of document.querySelectorAll(".board tbody tr")) {
    const name = row.cells[0].innerText.toLowerCase();
    row.hidden = !(kinds.has(row.dataset.kind) && words.every((word) => name.includes(word)));
  }
});
form.addEventListener("submit", (event) => event.preventDefault());
