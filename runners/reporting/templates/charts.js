"use strict";
// The charts of the report: plotly draws the points that the page holds, for what is chosen above each of them.
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const names = new Map(data.metrics.map((metric) => [metric.column, metric.name]));
  const headings = new Map(data.metrics.map((metric) => [metric.column, metric.heading]));
  const timings = new Set(data.metrics.filter((metric) => metric.timing).map((metric) => metric.column));
  // after the reader's first look and search
  const IDLE_MS = 3000;
  const RAIL = "rgba(0, 0, 0, 0.06)";

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  // plotly reads a few tags and entities in its texts
  const escape = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  // plotly is large and takes seconds to start on a slow machine: it lies in the page packed until a chart is on screen
  let loading = null;
  const unpack = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (char) => char.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    document.head.append(make("script", { textContent: await new Response(stream).text() }));
  };
  const loadPlotly = () => (loading ??= unpack());
  // what says how good the models of a point are, that of most points first
  const counted = data.points.reduce((counts, { quality }) => counts.set(quality, (counts.get(quality) ?? 0) + 1), new Map());
  const qualities = [...counted.keys()].filter(Boolean).sort((a, b) => counted.get(b) - counted.get(a));
  const unique = (values) => [...new Set(values)];
  const spell = (value) => String(Number(value.toPrecision(4)));
  const mean = (point, column) => (column in point.values ? point.values[column][1] : null);

  // a label of plotly's is as wide as its longest line, and cut at the edge of a narrow chart
  const wrap = (text) => {
    const width = window.innerWidth < 640 ? 28 : 72;
    return text.match(new RegExp(`\\S{${width}}|.{1,${width}}(?!\\S)`, "gs")).map((line) => escape(line.trim()));
  };

  const hover = (point) => {
    const lines = [`<b>${escape(point.name)}</b>`, ...wrap(point.conditions === "all rows" ? `${point.resolution} px` : point.conditions)];
    for (const [column, [low, middle, high]] of Object.entries(point.values)) {
      const range = low === null || low === high ? "" : ` (${spell(low)} to ${spell(high)})`;
      lines.push(...wrap(`${headings.get(column)}: ${spell(middle)}${range}`));
    }
    if (point.n) lines.push(`${point.n} seed${point.n > 1 ? "s" : ""}`);
    if (point.leads) lines.push(`best ${escape(names.get(point.quality))}, or not told from it`);
    if (point.disturbed) lines.push("other work disturbed its timing");
    if (point.status) lines.push(...wrap(`failed: ${point.status}`), ...wrap((point.message ?? "-").slice(0, 120)));
    return lines.join("<br>");
  };

  const COORDINATES = {
    pixels: { heading: "image (pixels)", of: (point) => point.pixels, log: true },
    topk: { heading: "top-k (regions)", of: (point) => point.topk, log: false },
  };
  const coordinate = (name) => COORDINATES[name] ?? { heading: headings.get(name), of: (point) => mean(point, name), log: data.costs.includes(name) };

  // where a coordinate is missing because the cell failed: beside all others, on a rail of its own
  const railOf = (values, log, after) => {
    const found = values.filter((value) => value !== null && Number.isFinite(value) && (!log || value > 0)).map((value) => (log ? Math.log(value) : value));
    if (!found.length) return null;
    const low = Math.min(...found), high = Math.max(...found);
    const step = (high - low || Math.abs(high) * 0.2 || 1) * 0.12;
    const place = after ? high + step : low - step;
    return log ? Math.exp(place) : place;
  };

  const errors = (points, name) => {
    if (name in COORDINATES || !points.some((point) => point.values[name]?.[0] != null)) return {};
    const reach = (point, end) => (point.values[name]?.[end] == null ? 0 : Math.abs(point.values[name][end] - point.values[name][1]));
    return { type: "data", symmetric: false, array: points.map((p) => reach(p, 2)), arrayminus: points.map((p) => reach(p, 0)), thickness: 1, width: 3 };
  };

  const measured = (points, x, y, lines) => {
    const traces = [], seen = new Map();
    const key = (point) => (lines ? `${point.mechanism}\n${point.series}\n${lines === "pixels" ? point.name : ""}` : point.mechanism);
    for (const name of unique(points.map(key)).sort(new Intl.Collator("en", { numeric: true }).compare)) {
      const own = points.filter((point) => key(point) === name);
      if (lines) own.sort((a, b) => x.of(a) - x.of(b));
      const look = data.mechanisms[own[0].mechanism];
      const nth = seen.get(look) ?? 0;
      seen.set(look, nth + 1);
      traces.push({
        type: "scatter",
        mode: lines && own.length > 1 ? "lines+markers" : "markers",
        name: escape(lines ? (lines === "pixels" ? own[0].name : own[0].series) : look.name),
        ...(look.kind && { legendgroup: look.kind, legendgrouptitle: { text: look.kind } }),
        x: own.map(x.of),
        y: own.map(y.of),
        error_x: errors(own, x.name),
        error_y: errors(own, y.name),
        text: own.map(hover),
        hovertemplate: "%{text}<extra></extra>",
        marker: {
          color: look.colour,
          // hollow, as in the drawn figures
          symbol: own.map((point) => (point.disturbed && (timings.has(x.name) || timings.has(y.name)) ? `${look.symbol}-open` : look.symbol)),
          size: 10,
          line: { color: "#000", width: own.map((point) => (!lines && y.name === point.quality && point.front.includes(x.name) ? 2.5 : 0.6)) },
        },
        line: { color: look.colour, width: 1.6, dash: ["solid", "dash", "dot", "dashdot", "longdash"][nth % 5] },
      });
    }
    return traces;
  };

  const failed = (points, x, y, rails) => ({
    type: "scatter",
    mode: "markers",
    name: "failed",
    x: points.map((point) => x.of(point) ?? rails.x),
    y: points.map((point) => y.of(point) ?? rails.y),
    text: points.map(hover),
    hovertemplate: "%{text}<extra></extra>",
    marker: { symbol: "x-thin", size: 11, color: "#8a3b00", line: { width: 3, color: "#8a3b00" } },
  });

  const figure = (chosen, xName, yName, lines) => {
    const x = { name: xName, ...coordinate(xName) }, y = { name: yName, ...coordinate(yName) };
    const placed = chosen.filter((point) => point.mechanism !== null && x.of(point) !== null && y.of(point) !== null);
    const lost = chosen.filter((point) => point.status && (x.of(point) === null || y.of(point) === null));
    const rails = { x: railOf(placed.map(x.of), x.log, true), y: railOf(placed.map(y.of), y.log, y.log) };
    const drawn = lost.filter((point) => (x.of(point) ?? rails.x) !== null && (y.of(point) ?? rails.y) !== null);
    const traces = measured(placed, x, y, lines);
    if (!lines) {
      const front = placed.filter((point) => point.quality === yName && point.front.includes(xName)).sort((a, b) => x.of(a) - x.of(b));
      if (front.length > 1) {
        traces.unshift({ type: "scatter", mode: "lines", name: "front of the means", x: front.map(x.of), y: front.map(y.of),
          line: { color: "#59636e", width: 1.2, dash: "dot", shape: "hv" }, hoverinfo: "skip" });
      }
    }
    if (drawn.length) traces.push(failed(drawn, x, y, rails));
    const rail = (axis, at) => ({ type: "line", [`${axis}0`]: at, [`${axis}1`]: at, [`${axis === "x" ? "y" : "x"}ref`]: "paper",
      [axis === "x" ? "y0" : "x0"]: 0, [axis === "x" ? "y1" : "x1"]: 1, line: { color: RAIL, width: 14 }, layer: "below" });
    const shapes = [];
    if (drawn.some((point) => x.of(point) === null)) shapes.push(rail("x", rails.x));
    if (drawn.some((point) => y.of(point) === null)) shapes.push(rail("y", rails.y));
    // an interval over few seeds reaches beyond what an accuracy can be, and would flatten the means
    const range = (name, values) => {
      if (!qualities.includes(name) || !values.length || shapes.length) return {};
      const low = Math.min(...values), high = Math.max(...values), room = Math.max(3, 0.12 * (high - low));
      return { range: [Math.max(-1, low - room), Math.min(103, high + room)] };
    };
    const axis = ({ heading, log, name }) => ({
      title: { text: escape(heading), standoff: 8 }, type: log ? "log" : "linear", automargin: true, gridcolor: "#e6e6e6", zeroline: false, linecolor: "#59636e",
      ...range(name, placed.map(coordinate(name).of)),
      ...(name === "pixels" ? ticks(chosen) : log ? decades(placed.map(coordinate(name).of)) : {}),
    });
    const narrow = window.innerWidth < 640;
    return { traces, layout: {
      xaxis: axis(x), yaxis: axis(y), shapes, hovermode: "closest", paper_bgcolor: "#fff", plot_bgcolor: "#fff",
      font: { family: 'system-ui, "DejaVu Sans", sans-serif', size: narrow ? 11 : 13, color: "#1b1f24" },
      margin: { l: 10, r: 10, t: 10, b: 10 }, hoverlabel: { align: "left", bgcolor: "#fff", bordercolor: "#59636e", font: { color: "#1b1f24", size: 12 } },
      showlegend: true, legend: { groupclick: "toggleitem", ...(narrow && { orientation: "h", y: -0.2, yanchor: "top" }) },
    } };
  };

  const ticks = (points) => {
    const sides = new Map(points.map((point) => [point.pixels, point.resolution]));
    return { tickmode: "array", tickvals: [...sides.keys()], ticktext: [...sides.values()].map(escape) };
  };

  // 1, 2 and 5 of each decade, written out; a narrow range is left to plotly
  const decades = (values) => {
    const low = Math.min(...values), high = Math.max(...values), ticks = [];
    for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.log10(high) + 1; power++) {
      for (const digit of [1, 2, 5]) ticks.push(Number(`${digit}e${power}`));
    }
    const within = ticks.filter((tick) => tick >= low && tick <= high);
    return within.length < 3 ? { exponentformat: "none" } : { tickmode: "array", tickvals: ticks, ticktext: ticks.map(String) };
  };

  const chooser = (label, options, change) => {
    const select = make("select", {}, ...options.map(([value, text]) => make("option", { value, textContent: text })));
    select.addEventListener("change", change);
    return { select, element: make("label", {}, label, select) };
  };

  const charts = [];
  const add = ({ title, xs, ys, group, points, lines, x, y }) => {
    const counts = new Map();
    for (const point of points) counts.set(point[group], (counts.get(point[group]) ?? 0) + (x === "pixels" || y in point.values ? 1 : 0.01));
    const plot = make("div", { className: "plot", textContent: "Drawing …" });
    let isSeen = false;
    const draw = () => {
      if (!isSeen) return;
      const chosen = points.filter((point) => point[group] === where.select.value);
      const { traces, layout } = figure(chosen, across.select.value, up.select.value, lines);
      Plotly.react(plot, traces, layout, { responsive: true, displaylogo: false, displayModeBar: false });
    };
    const where = chooser("Conditions", [...counts.keys()].map((name) => [name, name]), draw);
    const across = chooser("Across", xs.map((name) => [name, coordinate(name).heading]), draw);
    const up = chooser("Up", ys.map((name) => [name, coordinate(name).heading]), draw);
    where.select.value = [...counts.entries()].sort((a, b) => b[1] - a[1])[0][0];
    across.select.value = x;
    up.select.value = y;
    const controls = [[counts.size, where], [xs.length, across], [ys.length, up]].filter(([count]) => count > 1).map(([, choice]) => choice.element);
    document.getElementById("chart-list").append(make("div", { className: "chart" },
      make("h3", { textContent: title }), make("div", { className: "controls" }, ...controls), plot));
    const show = () => {
      if (isSeen) return;
      observer.disconnect();
      isSeen = true;
      plot.replaceChildren();
      draw();
    };
    const observer = new IntersectionObserver(async (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      await loadPlotly();
      show();
    }, { rootMargin: "300px" });
    observer.observe(plot);
    charts.push({ plot, show });
  };

  // A browser does not wait for what a page does before it prints: charts are drawn as soon as it is idle, off screen
  // too, and take the width of the paper, which no chart learns of by itself.
  const PAPER = { width: 680, height: 420 };
  const drawAll = async () => {
    await loadPlotly();
    for (const { show } of charts) {
      show();
      await new Promise((done) => setTimeout(done));
    }
  };
  const resize = (to) => {
    if (!window.Plotly) return;
    for (const { plot, show } of charts) {
      show();
      Plotly.relayout(plot, to);
    }
  };
  addEventListener("beforeprint", () => resize({ ...PAPER, autosize: false }));
  addEventListener("afterprint", () => resize({ width: null, height: null, autosize: true }));
  addEventListener("keydown", async (event) => {
    if (event.key !== "p" || !(event.ctrlKey || event.metaKey) || window.Plotly) return;
    event.preventDefault();
    await drawAll();
    print();
  });

  const metrics = data.metrics.map((metric) => metric.column);
  const costs = data.costs;
  const points = data.points;
  const several = (values) => unique(values.filter((value) => value !== null)).length > 1;
  const y = qualities[0] ?? metrics.find((name) => name !== costs[0]);
  if (costs.length && y) {
    add({ title: qualities.includes(y) ? "Accuracy against cost" : "One cost against another", xs: costs, ys: metrics, group: "conditions", points, lines: null, x: costs[0], y });
  }
  if (costs.length && several(points.map((point) => point.pixels))) {
    add({ title: "Against the size of the image", xs: ["pixels"], ys: metrics, group: "others", points: points.filter((point) => point.pixels !== null), lines: "pixels", x: "pixels", y: costs[0] });
  }
  const routed = points.filter((point) => point.topk !== null);
  if (metrics.length && several(routed.map((point) => point.topk))) {
    add({ title: "Against top-k", xs: ["topk"], ys: metrics, group: "conditions", points: routed, lines: "topk", x: "topk", y: metrics[0] });
  }
  addEventListener("load", () => setTimeout(() => (window.requestIdleCallback ?? setTimeout)(drawAll), IDLE_MS));
  document.getElementById("charts").hidden = !document.getElementById("chart-list").children.length;
})();
