(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures")?.textContent ?? "{}");
  const boxes = [...document.querySelectorAll("[data-figure]")];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Text, grid and background of a figure follow the page, which follows the system.
  function template() {
    const axis = {
      gridcolor: colour("--grid"), linecolor: colour("--line"), color: colour("--soft"),
      tickfont: { size: 12 }, title: { font: { size: 12 } },
      spikecolor: colour("--soft"), spikethickness: 1, spikedash: "solid",
    };
    return { layout: {
      paper_bgcolor: colour("--card"), plot_bgcolor: colour("--card"), showlegend: false,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--ink") },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") }, align: "left" },
      xaxis: axis, yaxis: axis,
    }, data: { heatmap: [{ textfont: { color: colour("--ink") } }] } };
  }

  const config = { responsive: true, displayModeBar: false };
  // A finger that moves over a figure scrolls; a mouse enlarges a part.
  const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  const drawn = boxes.map((box) => {
    const { data, layout } = figures[box.dataset.figure];
    return Plotly.newPlot(box, data, { dragmode, ...layout, template: template() }, config);
  });
  Promise.all(drawn).then(() => { document.documentElement.dataset.drawn = boxes.length; });

  const repaint = () => boxes.forEach((box) => Plotly.relayout(box, { template: template() }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

  // Paper is narrower than the window, and plotly.js does not resize figures for printing.
  matchMedia("print").addEventListener("change", (media) => boxes.forEach((box) => Plotly.relayout(
    box, { template: template(), autosize: !media.matches, width: media.matches ? box.clientWidth : null },
  )));

  document.querySelectorAll("button[data-run]").forEach((button) => {
    button.addEventListener("click", () => {
      const isShown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(isShown));
      for (const box of boxes) {
        const traces = box.data.flatMap((trace, i) => trace.legendgroup === button.dataset.run ? [i] : []);
        if (traces.length) Plotly.restyle(box, { visible: isShown }, traces);
      }
    });
  });

  // The button of a run brings its lines out; those of all runs, or of none, show all alike.
  const marks = [...document.querySelectorAll("button[data-mark]")];
  const isMarked = (button) => button.getAttribute("aria-pressed") === "true";
  marks.forEach((button) => {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(!isMarked(button)));
      const marked = new Set(marks.filter(isMarked).map((other) => other.dataset.mark));
      for (const box of boxes) {
        const traces = box.data.flatMap((trace, i) => trace.legendgroup ? [i] : []);
        const opacity = traces.map((i) => !marked.size || marked.has(box.data[i].legendgroup) ? 1 : 0.1);
        if (traces.length) Plotly.restyle(box, { opacity }, traces);
      }
    });
  });

  // The button of a column sorts the table by it; a second click reverses the order.
  document.querySelectorAll("button[data-sort]").forEach((button) => {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const body = head.closest("table").tBodies[0];
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const cell = (row) => row.cells[head.cellIndex];
      const compare = button.dataset.sort === "number"
        ? (a, b) => cell(a).dataset.value - cell(b).dataset.value
        : (a, b) => cell(a).textContent.localeCompare(cell(b).textContent, "en", { numeric: true });
      body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
      head.parentElement.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    });
  });
})();
