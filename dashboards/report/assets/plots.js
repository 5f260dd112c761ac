// Five kinds of interactive plot as inline SVG: lines, layers, scatter with fits, boxes, radar.
"use strict";

const NS = "http://www.w3.org/2000/svg";
const colour = (index) => `var(--c${index % 12})`;

function draw(parent, name, attributes, text) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function html(parent, name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

/** Round numbers that cover [low, high], about five of them. */
function ticks(low, high) {
  const raw = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-6; n++) found.push(n * step);
  return found;
}

const short = (value) =>
  Math.abs(value) >= 10000 ? `${+(value / 1000).toPrecision(3)}k` : String(+value.toPrecision(3));

/** Whether the plot is as narrow as a phone: its text must not shrink with it. */
const narrow = (canvas) => canvas.clientWidth < 480;

/** An SVG with axes; returns it with the functions that place data in it. */
function frame(canvas, { width = 460, height = 260, x, y, xLabel = "", yLabel = "", xTicks }) {
  if (narrow(canvas)) [width, height] = [360, 260];
  const svg = draw(canvas, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  const [left, right, top, bottom] = [48, 12, 12, 36];
  const px = (v) => left + ((v - x[0]) / (x[1] - x[0] || 1)) * (width - left - right);
  const py = (v) => height - bottom - ((v - y[0]) / (y[1] - y[0] || 1)) * (height - top - bottom);
  for (const v of ticks(...y)) {
    draw(svg, "line", { class: "axis", x1: left, x2: width - right, y1: py(v), y2: py(v) });
    draw(svg, "text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, short(v));
  }
  for (const v of xTicks ?? ticks(...x)) {
    draw(svg, "text", { x: px(v), y: height - bottom + 16, "text-anchor": "middle" }, short(v));
  }
  draw(svg, "text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xLabel);
  draw(svg, "text", { x: 4, y: 10 }, yLabel);
  return { svg, px, py, left, right, top, bottom, width, height };
}

/** A mark that says something when it is pointed at, tapped or focused. */
function tell(figure, mark, text) {
  const show = () => {
    hide();
    const [outer, box] = [figure.getBoundingClientRect(), mark.getBoundingClientRect()];
    const tip = html(figure, "div", { class: "tip" }, text);
    const half = tip.offsetWidth / 2;
    const middle = box.left + box.width / 2 - outer.left;
    tip.style.left = `${Math.min(Math.max(middle, half), outer.width - half)}px`;
    tip.style.top = `${box.top - outer.top}px`;
  };
  const hide = () => figure.querySelector(".tip")?.remove();
  mark.setAttribute("tabindex", 0);
  mark.setAttribute("aria-label", text);
  for (const event of ["pointerenter", "focus"]) mark.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) mark.addEventListener(event, hide);
}

function bounds(values, zero = false) {
  const low = Math.min(...values, ...(zero ? [0] : []));
  const high = Math.max(...values, ...(zero ? [0] : []));
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  return [zero && low === 0 ? 0 : low - pad, high + pad];
}

function lines(figure, canvas, data) {
  const points = data.points;
  const at = frame(canvas, {
    x: bounds(points.map((p) => p[0])), y: bounds(points.map((p) => p[1])), xLabel: "step",
  });
  const path = points.map((p) => `${at.px(p[0]).toFixed(1)},${at.py(p[1]).toFixed(1)}`).join(" ");
  draw(at.svg, "polyline", { points: path, fill: "none", stroke: colour(0), "stroke-width": 1.8 });
  const dot = draw(at.svg, "circle", { r: 4, fill: colour(0), visibility: "hidden" });
  const text = draw(at.svg, "text", { class: "label", x: at.width - at.right, y: 10, "text-anchor": "end" });
  at.svg.addEventListener("pointermove", (event) => {
    const box = at.svg.getBoundingClientRect();
    const where = ((event.clientX - box.left) / box.width) * at.width;
    const near = points.reduce((a, b) => (Math.abs(at.px(b[0]) - where) < Math.abs(at.px(a[0]) - where) ? b : a));
    dot.setAttribute("cx", at.px(near[0]));
    dot.setAttribute("cy", at.py(near[1]));
    dot.setAttribute("visibility", "visible");
    text.textContent = `step ${near[0]}: ${+near[1].toPrecision(4)}`;
  });
}

/** A line per layer over training steps; deeper layers are stronger. */
function similarity(figure, canvas, data) {
  const points = data.flatMap((line) => line.points);
  const at = frame(canvas, {
    x: bounds(points.map((p) => p[0])), y: [Math.min(0, ...points.map((p) => p[1])), 1], xLabel: "step",
  });
  for (const line of data) {
    const style = { stroke: colour(line.part), "stroke-opacity": 0.25 + 0.75 * line.depth };
    const path = line.points.map((p) => `${at.px(p[0]).toFixed(1)},${at.py(p[1]).toFixed(1)}`).join(" ");
    draw(at.svg, "polyline", { points: path, fill: "none", "stroke-width": 1.8, ...style });
    for (const [step, value] of line.points) {
      const mark = draw(at.svg, "circle", { cx: at.px(step), cy: at.py(value), r: 3, fill: colour(line.part), "fill-opacity": style["stroke-opacity"] });
      tell(figure, mark, `${line.name}, step ${step}: ${value.toFixed(3)}`);
    }
  }
}

/** Buttons that show and hide series; calls back with the set of hidden ones. */
function legend(canvas, names, update) {
  const box = html(canvas, "div", { class: "legend" });
  const hidden = new Set();
  names.forEach((name, index) => {
    const button = html(box, "button", { type: "button", "aria-pressed": "true" });
    html(button, "i", { style: `background:${colour(index)}` });
    button.append(name);
    button.addEventListener("click", () => {
      hidden.has(name) ? hidden.delete(name) : hidden.add(name);
      button.setAttribute("aria-pressed", String(!hidden.has(name)));
      update(hidden);
    });
  });
}

function radar(figure, canvas, data) {
  const names = data.series.map((one) => one.name);
  const redraw = (hidden) => {
    place.replaceChildren();
    const small = narrow(canvas);
    const [width, radius] = small ? [360, 105] : [640, 175];
    const [height, middle] = [2.6 * radius, width / 2];
    const svg = draw(place, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    const count = data.axes.length;
    const at = (axis, share) => {
      const angle = (2 * Math.PI * axis) / count - Math.PI / 2;
      return [middle + radius * share * Math.cos(angle), height / 2 + radius * share * Math.sin(angle)];
    };
    for (const share of [0.25, 0.5, 0.75, 1]) {
      draw(svg, "polygon", { class: "axis", points: data.axes.map((_, i) => at(i, share)).join(" ") });
    }
    data.axes.forEach((axis, i) => {
      const [x, y] = at(i, 1.12);
      const anchor = Math.abs(x - middle) < 20 ? "middle" : x < middle ? "end" : "start";
      const top = small ? "" : ` (${short(axis.top)})`;
      draw(svg, "text", { x, y: y + 4, "text-anchor": anchor }, axis.name + top);
    });
    data.series.forEach((one, index) => {
      if (hidden.has(one.name)) return;
      const corners = one.values.map((value, i) => value !== null && at(i, value / data.axes[i].top));
      const dash = one.ours ? "" : "5 4";
      one.values.forEach((value, i) => {
        if (value === null) return;
        const [[x, y], next] = [corners[i], corners[(i + 1) % count]];
        if (next) draw(svg, "line", { x1: x, y1: y, x2: next[0], y2: next[1], stroke: colour(one.colour), "stroke-width": 1.8, "stroke-dasharray": dash });
        const mark = draw(svg, "circle", { cx: x, cy: y, r: 4, fill: colour(one.colour) });
        tell(figure, mark, `${one.name}, ${data.axes[i].name}: ${value}`);
      });
    });
  };
  legend(canvas, names, redraw);
  const place = html(canvas, "div");
  canvas.querySelectorAll(".legend i").forEach((dot, i) => (dot.style.background = colour(data.series[i].colour)));
  redraw(new Set());
}

/** Pearson's r with its Fisher interval, and the least-squares line; null below four points. */
function fit(points) {
  const n = points.length;
  const mean = (k) => points.reduce((sum, p) => sum + p[k], 0) / n;
  const [mx, my] = [mean(0), mean(1)];
  const sum = (f) => points.reduce((total, p) => total + f(p[0] - mx, p[1] - my), 0);
  const [xx, yy, xy] = [sum((a) => a * a), sum((_, b) => b * b), sum((a, b) => a * b)];
  if (n < 4 || !xx || !yy) return null;
  const r = Math.max(-1 + 1e-12, Math.min(1 - 1e-12, xy / Math.sqrt(xx * yy)));
  const half = 1.959964 / Math.sqrt(n - 3);
  return { r, low: Math.tanh(Math.atanh(r) - half), high: Math.tanh(Math.atanh(r) + half), slope: xy / xx, at: my - (xy / xx) * mx };
}

function scatter(figure, canvas, data) {
  const slide = html(canvas, "label", { class: "slide" }, "down-weighting of specialised families");
  const input = html(slide, "input", { type: "range", min: 0.1, max: 1, step: 0.05, value: data.weight });
  const shown = html(slide, "output");
  const place = html(canvas, "div");
  const said = html(canvas, "div", { class: "legend" });
  const redraw = () => {
    const weight = Number(input.value);
    shown.textContent = weight.toFixed(2);
    place.replaceChildren();
    said.replaceChildren();
    const all = data.series.flatMap((one) => one.points);
    if (!all.length) return html(place, "p", { class: "empty" }, "No backbone has both a sourced capability score and a result.");
    const xOf = (p) => p.x * (p.special ? weight : 1);
    const at = frame(place, {
      width: 640, height: 340, x: bounds(all.map(xOf)), y: bounds(all.map((p) => p.y), true),
      xLabel: "general capability, percent", yLabel: "share of the best possible, percent",
    });
    data.series.forEach((one, index) => {
      const points = one.points.map((p) => [xOf(p), p.y]);
      const line = fit(points);
      const r = line ? `r = ${line.r.toFixed(2)} [${line.low.toFixed(2)}, ${line.high.toFixed(2)}], R² = ${(line.r ** 2).toFixed(2)}` : `${points.length} points: too few for a line`;
      const key = html(said, "span");
      html(key, "i", { style: `background:${colour(index)}` });
      key.append(`${one.name}: ${r}${one.printed ? ` (paper: r = ${one.printed})` : ""}`);
      if (line) {
        const ends = [Math.min(...points.map((p) => p[0])), Math.max(...points.map((p) => p[0]))];
        draw(at.svg, "line", { x1: at.px(ends[0]), x2: at.px(ends[1]), y1: at.py(line.at + line.slope * ends[0]), y2: at.py(line.at + line.slope * ends[1]), stroke: colour(index), "stroke-width": 1.8 });
      }
      one.points.forEach((p) => {
        const mark = draw(at.svg, "circle", { cx: at.px(xOf(p)), cy: at.py(p.y), r: 5.5, fill: p.ours ? colour(index) : "none", stroke: colour(index), "stroke-width": 2 });
        tell(figure, mark, `${p.name}, ${one.name}: ${p.text} at ${xOf(p).toFixed(1)} (${p.used})`);
      });
    });
  };
  input.addEventListener("input", redraw);
  redraw();
}

function boxes(figure, canvas, data) {
  const small = narrow(canvas);
  const [row, width, left] = small ? [48, 360, 16] : [34, 640, 230];
  const height = data.boxes.length * row + 34;
  const svg = draw(canvas, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  const values = data.boxes.flatMap((one) => [...one.values, ...(one.paper === null ? [] : [one.paper])]);
  const [low, high] = bounds(values);
  const px = (v) => left + ((v - low) / (high - low)) * (width - left - 16);
  for (const v of ticks(low, high)) {
    draw(svg, "line", { class: "axis", x1: px(v), x2: px(v), y1: 4, y2: height - 26 });
    draw(svg, "text", { x: px(v), y: height - 10, "text-anchor": "middle" }, short(v));
  }
  data.boxes.forEach((one, index) => {
    const y = (index + 1) * row - 14;
    const c = colour(index);
    draw(svg, "text", small ? { class: "label", x: left, y: y - 16 } : { class: "label", x: left - 10, y: y + 4, "text-anchor": "end" }, one.name);
    draw(svg, "line", { x1: px(one.low), x2: px(one.high), y1: y, y2: y, stroke: c, "stroke-width": 1.5 });
    draw(svg, "rect", { x: px(one.q1), width: Math.max(1, px(one.q3) - px(one.q1)), y: y - 9, height: 18, fill: c, "fill-opacity": 0.25, stroke: c });
    draw(svg, "line", { x1: px(one.median), x2: px(one.median), y1: y - 9, y2: y + 9, stroke: c, "stroke-width": 2.5 });
    one.values.forEach((value) => {
      const mark = draw(svg, "circle", { cx: px(value), cy: y, r: 3.2, fill: c });
      tell(figure, mark, `${one.name}: ${value.toFixed(2)}`);
    });
    if (one.paper !== null) {
      const ring = draw(svg, "circle", { cx: px(one.paper), cy: y, r: 6, fill: "none", stroke: "var(--ink)", "stroke-width": 1.8 });
      tell(figure, ring, `${one.name}, the paper’s best: ${one.paper}`);
    }
  });
}

const KINDS = { lines, similarity, radar, scatter, boxes };
for (const figure of document.querySelectorAll("figure[data-plot]")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  KINDS[figure.dataset.plot](figure, figure.querySelector(".canvas"), data);
}
