// Sorting and filtering of tables; without it everything is still there to read.
"use strict";

function valueOf(row, column, numeric) {
  const cell = row.cells[column];
  return numeric ? Number(cell.dataset.value) : cell.textContent.trim().toLowerCase();
}

function sortBy(table, heading) {
  const numeric = heading.dataset.kind === "number";
  const upwards = heading.ariaSort ? heading.ariaSort === "descending" : !numeric;
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", upwards ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const [x, y] = [a, b].map((row) => valueOf(row, heading.cellIndex, numeric));
    return (x < y ? -1 : x > y ? 1 : 0) * (upwards ? 1 : -1);
  });
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  for (const heading of table.tHead.rows[0].cells) {
    heading.tabIndex = 0;
    heading.addEventListener("click", () => sortBy(table, heading));
    heading.addEventListener("keydown", (event) => event.key === "Enter" && sortBy(table, heading));
  }
}

for (const input of document.querySelectorAll("input[data-filter]")) {
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/);
    for (const row of document.getElementById(input.dataset.filter).tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
  });
}
