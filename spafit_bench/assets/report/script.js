"use strict";
// Sorting and filtering only: everything is on the page without it.
(() => {
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const read = (row, index) => {
    const cell = row.cells[index];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  const number = (text) => {
    const found = /^[+-]?[\d,]*\.?\d+(e[+-]?\d+)?/i.exec(text.replace("\u2212", "-"));
    return found ? parseFloat(found[0].replace(/,/g, "")) : NaN;
  };

  function sort(table, index, descending) {
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => row.cells.length === table.tHead.rows[0].cells.length);
      const keys = new Map(rows.map((row) => [row, read(row, index)]));
      const numeric = rows.every((r) => ["", "\u2014"].includes(keys.get(r)) || !isNaN(number(keys.get(r))));
      const order = (a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        const missing = ["", "\u2014"].includes(x) - ["", "\u2014"].includes(y);
        if (missing) return missing;
        const by = numeric ? number(x) - number(y) : compare(x, y);
        return descending ? -by : by;
      };
      body.append(...rows.sort(order));
    }
  }

  for (const table of document.querySelectorAll("table")) {
    if (!table.tHead || table.tHead.rows.length !== 1) continue;
    [...table.tHead.rows[0].cells].forEach((head, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, index, descending);
      });
    });
  }

  const filters = document.querySelector("form.filters");
  const list = document.getElementById("run-table");
  if (filters && list) {
    const rows = [...list.tBodies[0].rows];
    const selects = [...filters.querySelectorAll("select")];
    for (const select of selects) {
      const values = new Set(rows.map((row) => read(row, Number(select.dataset.column))));
      for (const value of [...values].sort(compare)) select.add(new Option(value, value));
    }
    const apply = () => {
      const words = filters.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        const fits = words.every((word) => text.includes(word)) &&
          selects.every((s) => !s.value || read(row, Number(s.dataset.column)) === s.value);
        row.hidden = !fits;
        shown += fits;
      }
      filters.elements.count.value = `${shown} of ${rows.length} runs`;
    };
    filters.addEventListener("input", apply);
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.hidden = false;
    apply();
  }

  document.documentElement.classList.add("scripted"); // the table of runs leads to each run
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const closed = target && target.closest("details:not([open])");
    if (closed) {
      closed.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", reveal);
  reveal();
})();
