// Tables in <div class="sortable">: a click on a column's head sorts by it, and the lists above the
// table choose rows. Without JavaScript they are ordinary tables.
"use strict";

function readCell(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = Number(text.replaceAll(",", ""));
  return text === "" ? null : Number.isNaN(number) ? text : number;
}

function compareCells(a, b) {
  if (a === b) return 0;
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b));
}

function sortTable(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const values = [...body.rows].map((row) => readCell(row, column));
  const isText = values.some((value) => typeof value === "string");
  // Names begin with the first letter, numbers with the largest.
  const isAscending = heads[column].ariaSort === null ? isText : heads[column].ariaSort === "descending";
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", isAscending ? "ascending" : "descending");
  const sign = isAscending ? 1 : -1;
  const rows = [...body.rows].map((row, index) => ({ row, value: values[index] }));
  // Empty cells stay at the end in both directions.
  rows.sort((a, b) =>
    a.value === null || b.value === null
      ? (a.value === null) - (b.value === null)
      : sign * compareCells(a.value, b.value),
  );
  body.append(...rows.map((entry) => entry.row));
}

function filterTable(table, lists) {
  for (const row of table.tBodies[0].rows) {
    row.hidden = lists.some(
      (list, column) => list.value !== "" && row.cells[column].textContent.trim() !== list.value,
    );
  }
}

function addLists(table, count) {
  const bar = document.createElement("p");
  const lists = [];
  for (let column = 0; column < count; column += 1) {
    const name = table.tHead.rows[0].cells[column].textContent.trim();
    const values = new Set([...table.tBodies[0].rows].map((row) => row.cells[column].textContent.trim()));
    const list = document.createElement("select");
    list.append(new Option(`${name}: all`, ""), ...[...values].map((value) => new Option(value, value)));
    list.setAttribute("aria-label", name);
    list.addEventListener("change", () => filterTable(table, lists));
    lists.push(list);
    bar.append(list, " ");
  }
  table.closest(".sortable").prepend(bar);
}

function prepareTable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortTable(table, column));
    head.append(button);
  });
  addLists(table, 4);
}

for (const table of document.querySelectorAll(".sortable table")) prepareTable(table);
