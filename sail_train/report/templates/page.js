"use strict";
// Reads the chart under the pointer, and filters the sample cards. Everything is set as text, never as markup.
(() => {
  const reading = document.getElementById("reading");

  function nearest(points, x) {
    let best = points[0];
    for (const point of points) if (Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
    return best;
  }

  function row(colour, text) {
    const line = document.createElement("div");
    line.className = "c" + colour;
    line.textContent = text;
    return line;
  }

  for (const chart of document.querySelectorAll("svg.lines")) {
    const lines = JSON.parse(chart.dataset.lines);
    if (!lines.length || chart.closest(".spark")) continue;
    const box = chart.viewBox.baseVal;
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("y1", 8);
    cursor.setAttribute("y2", box.height - 20);
    chart.append(cursor);
    chart.addEventListener("pointermove", (event) => {
      const frame = chart.getBoundingClientRect();
      const x = ((event.clientX - frame.left) / frame.width) * box.width;
      const found = lines.map((line) => [line, nearest(line.points, x)]);
      cursor.setAttribute("x1", found[0][1][0]);
      cursor.setAttribute("x2", found[0][1][0]);
      cursor.style.opacity = 1;
      const head = document.createElement("b");
      head.textContent = "update " + found[0][1][2];
      reading.replaceChildren(head, ...found.map(([line, point]) => row(line.colour, line.label + "  " + point[3])));
      reading.hidden = false;
      const left = Math.min(event.clientX + 14, window.innerWidth - reading.offsetWidth - 8);
      reading.style.transform = `translate(${left}px, ${event.clientY + 14}px)`;
    });
    chart.addEventListener("pointerleave", () => {
      reading.hidden = true;
      cursor.style.opacity = 0;
    });
  }

  const filters = document.getElementById("filters");
  if (filters) {
    const cards = [...document.querySelectorAll(".gallery > article")];
    const apply = () => {
      let shown = 0;
      for (const card of cards) {
        card.hidden = ["run", "suite", "verdict"].some((name) => {
          const wanted = filters.elements[name].value;
          return wanted && card.dataset[name] !== wanted;
        });
        shown += !card.hidden;
      }
      filters.querySelector("output").textContent = shown + " of " + cards.length;
    };
    filters.hidden = false;
    filters.addEventListener("change", apply);
    filters.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }
})();
