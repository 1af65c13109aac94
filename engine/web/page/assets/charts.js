// Charts by Chart.js, in the page's colours, each with its figures as a table for those who cannot see it.

import { el, table } from "./dom.js";

const { Chart } = globalThis;
const charts = new Map(); // chart to the names of its data sets' colours

function colour(name, alpha = 1) {
  const probe = el("span", { class: "hidden" });
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return alpha === 1 ? found : found.replace(/^rgb\((.*)\)$/, `rgba($1, ${alpha})`);
}

function paint(chart) {
  const [text, line] = [colour("muted"), colour("line")];
  chart.data.datasets.forEach((data, index) => {
    const name = charts.get(chart)[index];
    data.order = -index;
    data.borderColor = colour(name);
    data.backgroundColor = colour(name, chart.config.type === "line" ? 0.14 : 0.85);
  });
  for (const scale of Object.values(chart.options.scales)) {
    scale.ticks = { ...scale.ticks, color: text };
    scale.grid = { ...scale.grid, color: line };
    scale.border = { display: false };
  }
  chart.options.plugins.legend.labels.color = text;
}

/**
 * A chart with a heading. `sets` are {label, colour}; `show(labels, rows)` gives it figures, a list for each set.
 * Labels are names, and `first` says of what; with a `unit` they are times.
 * `summary(labels, rows)` is what it says in a sentence.
 */
export function chart(title, { type = "line", sets, first, unit = null, horizontal = false, summary, format = String, extra = null }) {
  const canvas = el("canvas", { role: "img", "aria-label": title });
  const figures = table(title, [
    { name: first, cell: (row) => row.label },
    ...sets.map((set, index) => ({ name: set.label, number: true, cell: (row) => format(row.values[index]) })),
  ]);
  const details = el("details", {}, el("summary", {}, "As a table"), figures.node);
  const node = el(
    "section",
    { class: "card chart", "aria-label": title },
    el("div", { class: "card-head" }, el("h2", {}, title), extra),
    el("div", { class: "canvas" }, canvas),
    details,
  );
  const drawn = new Chart(canvas, options({ type, sets, unit, horizontal, format }));
  charts.set(drawn, sets.map((set) => set.colour));
  paint(drawn);
  drawn.update();

  let latest = [[], []];
  const fillTable = () => {
    if (!details.open) return;
    const [labels, rows] = latest;
    figures.show(labels.map((label, index) => ({ label: String(label), values: rows.map((row) => row[index]) })));
  };
  details.addEventListener("toggle", fillTable);
  return {
    node,
    show(labels, rows) {
      latest = [labels, rows];
      drawn.data.labels = labels;
      rows.forEach((row, index) => (drawn.data.datasets[index].data = row));
      drawn.update();
      canvas.setAttribute("aria-label", summary ? `${title}: ${summary(labels, rows)}` : title);
      fillTable();
    },
    end() {
      charts.delete(drawn);
      drawn.destroy();
    },
  };
}

function options({ type, sets, unit, horizontal, format }) {
  const values = { beginAtZero: true, ticks: { maxTicksLimit: 5, callback: (value) => format(value, true) }, grid: {} };
  const time = { type: "time", time: { unit, tooltipFormat: "pp" } };
  const names = { ...(unit === null ? {} : time), ticks: { maxRotation: 0, autoSkipPadding: 16 }, grid: { display: false } };
  return {
    type,
    data: {
      labels: [],
      datasets: sets.map((set) => ({
        label: set.label,
        data: [],
        fill: true,
        borderWidth: type === "line" ? 2 : 0,
        borderRadius: 3,
        pointRadius: 0,
        pointHitRadius: 12,
        cubicInterpolationMode: "monotone",
        maxBarThickness: 26,
        barPercentage: 1,
        grouped: false, // a part lies in front of the whole
      })),
    },
    options: {
      animation: false,
      maintainAspectRatio: false,
      indexAxis: horizontal ? "y" : "x",
      interaction: { mode: "index", intersect: false, axis: horizontal ? "y" : "x" },
      scales: horizontal ? { x: values, y: { ...names, ticks: { autoSkip: false } } } : { x: names, y: values },
      plugins: {
        legend: { display: sets.length > 1, align: "end", reverse: true, labels: { boxWidth: 10, boxHeight: 10, usePointStyle: true } },
        tooltip: { callbacks: { label: (item) => ` ${item.dataset.label}: ${format(item.parsed[horizontal ? "x" : "y"])}` } },
      },
    },
  };
}

if (Chart) Chart.defaults.font.family = getComputedStyle(document.documentElement).fontFamily;
addEventListener("theme", () => {
  for (const drawn of charts.keys()) {
    paint(drawn);
    drawn.update();
  }
});
