"use strict";

// Tables: clicking a header sorts by its column, highest first; the second click reverses the order, the third restores it.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[table.tBodies.length - 1];
  const original = [...body.rows];
  for (const button of table.querySelectorAll("thead button")) {
    const header = button.parentElement;
    const text = header.classList.contains("text");
    const orders = text ? ["ascending", "descending", null] : ["descending", "ascending", null];
    button.addEventListener("click", () => {
      const order = orders[(orders.indexOf(header.getAttribute("aria-sort")) + 1) % 3];
      table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      if (order) header.setAttribute("aria-sort", order);
      const value = (row) => {
        const cell = row.cells[header.cellIndex];
        return text ? cell.textContent : cell.dataset.value === "" ? null : Number(cell.dataset.value);
      };
      const sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) return (x === null) - (y === null); // rows without a value come last
        return sign * (text ? x.localeCompare(y) : x - y);
      };
      body.append(...(order ? [...original].sort(compare) : original));
    });
  }
}

// Charts: the legend shows the values at the epoch under the pointer, and toggles lines.
for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const series = JSON.parse(svg.dataset.series);
  const lines = svg.querySelectorAll(".line");
  const outputs = chart.querySelectorAll("output");
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const distance = (point) => Math.abs(point[0] - x);
    const nearest = series.flatMap((line) => line.points).reduce((a, b) => (distance(b) < distance(a) ? b : a));
    cursor.setAttribute("x1", nearest[0]);
    cursor.setAttribute("x2", nearest[0]);
    cursor.setAttribute("visibility", "visible");
    series.forEach((line, i) => {
      const point = line.points.find((each) => each[2] === nearest[2]);
      outputs[i].textContent = point ? point[3] : "";
    });
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    outputs.forEach((output) => (output.textContent = ""));
  });
  chart.querySelectorAll(".legend button").forEach((button, i) => {
    button.addEventListener("click", () => {
      const off = lines[i].classList.toggle("off");
      button.setAttribute("aria-pressed", String(!off));
    });
  });
}

// Gallery: clicking a picture enlarges it; arrow keys and buttons move to its neighbours in the row and the column.
const dialog = document.querySelector("dialog");
const rows = [...document.querySelectorAll(".pictures tbody tr:not(.why)")].map((row) => [...row.querySelectorAll("button")]);
let [row, column] = [0, 0];
const open = (nextRow, nextColumn) => {
  row = (nextRow + rows.length) % rows.length;
  column = (nextColumn + rows[row].length) % rows[row].length;
  const button = rows[row][column];
  const picture = dialog.querySelector("img");
  picture.src = button.firstElementChild.src;
  picture.alt = button.firstElementChild.alt;
  dialog.querySelector("p").textContent = button.dataset.caption;
  if (!dialog.open) dialog.showModal();
};
rows.forEach((buttons, i) => buttons.forEach((button, j) => button.addEventListener("click", () => open(i, j))));
dialog.querySelectorAll("button[value]").forEach((button) => {
  button.addEventListener("click", () => open(row, column + Number(button.value)));
});
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!steps) return;
  event.preventDefault();
  open(row + steps[0], column + steps[1]);
});
