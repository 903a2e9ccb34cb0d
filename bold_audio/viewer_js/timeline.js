// The time axis: blocks of the film, envelope of the sound, and courses of voxels, all over the same seconds.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 64, right: 12 };

function draw(tag, attributes, parent, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

/** Round numbers within a range. */
function ticksOf(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return found;
}

class Timeline {
  constructor(about, goTo) {
    this.about = about;
    this.goTo = goTo;
    this.end = about.times[about.n_volumes - 1] + about.t_r;
    this.rows = [];
    this.hidden = new Set();
    this.loud = null;
    this.time = about.times[about.start.volume];
    this.range = [Math.min(0, about.times[0]), this.end];
    this.svg = draw("svg", { class: "ba-svg", role: "img", "aria-label": "Time course of the voxel" }, document.createElement("div"));
    this.legend = make("div", { class: "ba-legend", role: "group", "aria-label": "Courses that are drawn" });
    this.empty = make("div", { class: "ba-note" });
    this.element = make("div", { class: "ba-timeline" }, this.legend, this.svg, this.empty);
    this.svg.addEventListener("pointerdown", (event) => {
      this.held = true;
      this.svg.setPointerCapture(event.pointerId);
      this.seek(event);
    });
    this.svg.addEventListener("pointermove", (event) => this.held && this.seek(event));
    for (const end of ["pointerup", "pointercancel"]) this.svg.addEventListener(end, () => (this.held = false));
  }

  seek(event) {
    const share = (event.clientX - this.svg.getBoundingClientRect().left - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
    this.goTo(this.range[0] + Math.min(1, Math.max(0, share)) * (this.range[1] - this.range[0]));
  }

  /** Rows of {title, series: [{name, values}]}, one chart each. */
  setRows(rows, why = "") {
    this.rows = rows;
    this.empty.textContent = why;
    this.render();
  }

  setLoudness(bytes) {
    this.loud = bytes;
    this.render();
  }

  zoom(range) {
    this.range = range;
    this.render();
  }

  x(seconds) {
    return MARGIN.left + ((seconds - this.range[0]) / (this.range[1] - this.range[0])) * (this.width - MARGIN.left - MARGIN.right);
  }

  render(width = this.width) {
    if (!width) return;
    this.width = width;
    this.svg.replaceChildren();
    const defs = draw("defs", {}, this.svg);
    this.clip = `ba-clip-${Math.random().toString(36).slice(2)}`;
    draw("rect", { x: MARGIN.left, y: 0, width: width - MARGIN.left - MARGIN.right, height: 2000 }, draw("clipPath", { id: this.clip }, defs));
    let top = 4;
    if (this.about.blocks.length) top = this.renderBlocks(top);
    if (this.loud) top = this.renderLoudness(top);
    const height = this.rows.length > 1 ? 100 : 170;
    for (const row of this.rows) top = this.renderChart(row, top, height);
    this.renderAxis(top);
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", top + 40);
    this.cursor = draw("line", { class: "ba-cursor", y1: 0, y2: top + 4 }, this.svg);
    this.renderLegend();
    this.setTime(this.time);
  }

  renderBlocks(top) {
    const group = draw("g", { "clip-path": `url(#${this.clip})` }, this.svg);
    draw("text", { x: MARGIN.left - 6, y: top + 12, class: "ba-row" }, this.svg, "film");
    for (const [start, end, kind] of this.about.blocks) {
      const [x, width] = [this.x(start), this.x(end) - this.x(start)];
      draw("rect", { x, y: top, width: Math.max(0, width), height: 16, fill: this.about.block_colours[kind], class: "ba-block" }, group);
      if (width > 42) draw("text", { x: x + width / 2, y: top + 12, "text-anchor": "middle" }, group, kind);
    }
    return top + 20;
  }

  renderLoudness(top) {
    const n = this.loud.length, half = 16, mid = top + half, up = [], down = [];
    for (let i = 0; i < n; i++) {
      const x = this.x(((i + 0.5) / n) * this.end).toFixed(1), size = (this.loud[i] / 255) * half;
      up.push(`${x},${(mid - size).toFixed(1)}`);
      down.unshift(`${x},${(mid + size).toFixed(1)}`);
    }
    draw("polygon", { points: [...up, ...down].join(" "), class: "ba-loud", "clip-path": `url(#${this.clip})` }, this.svg);
    draw("text", { x: MARGIN.left - 6, y: mid + 4, class: "ba-row" }, this.svg, "sound");
    return top + 2 * half + 4;
  }

  renderChart(row, top, height) {
    const shown = row.series.filter((s) => !this.hidden.has(s.name)), inner = height - (row.title ? 22 : 8);
    const from = top + height - inner;
    const [k0, k1] = this.range.map((t) => Math.round((t - this.about.times[0]) / this.about.t_r));
    let low = Infinity, high = -Infinity;
    for (const { values } of shown) {
      for (let k = Math.max(0, k0); k < Math.min(values.length, k1); k++) {
        if (values[k] < low) low = values[k];
        if (values[k] > high) high = values[k];
      }
    }
    if (!(high > low)) [low, high] = low === Infinity ? [0, 1] : [low - 1, low + 1];
    const y = (value) => from + inner - ((value - low) / (high - low)) * inner;
    if (row.title) draw("text", { x: MARGIN.left, y: top + 14, class: "ba-title" }, this.svg, row.title);
    for (const tick of ticksOf(low, high, height > 120 ? 5 : 3)) {
      draw("line", { x1: MARGIN.left, x2: this.width - MARGIN.right, y1: y(tick), y2: y(tick), class: "ba-grid" }, this.svg);
      draw("text", { x: MARGIN.left - 6, y: y(tick) + 4, class: "ba-row" }, this.svg, short(tick));
    }
    const group = draw("g", { "clip-path": `url(#${this.clip})` }, this.svg);
    for (const series of shown) this.renderLine(series, y, group);
    return top + height + 4;
  }

  renderLine({ name, values, strong }, y, group) {
    const parts = [];
    let begun = false;
    for (let k = 0; k < values.length; k++) {
      if (Number.isNaN(values[k])) {
        begun = false;
        continue;
      }
      parts.push(`${begun ? "L" : "M"}${this.x(this.about.times[k] + this.about.t_r / 2).toFixed(1)} ${y(values[k]).toFixed(1)}`);
      begun = true;
    }
    draw("path", { d: parts.join(""), stroke: this.about.colours[name] || "#444", class: strong ? "ba-line ba-strong" : "ba-line", "data-name": name }, group);
  }

  renderAxis(top) {
    for (const tick of ticksOf(...this.range, Math.max(3, Math.floor(this.width / 110)))) {
      draw("line", { x1: this.x(tick), x2: this.x(tick), y1: top, y2: top + 4, class: "ba-tick" }, this.svg);
      draw("text", { x: this.x(tick), y: top + 16, "text-anchor": "middle" }, this.svg, short(tick));
    }
    draw("text", { x: (MARGIN.left + this.width - MARGIN.right) / 2, y: top + 33, "text-anchor": "middle" }, this.svg, "Time since the run began (s)");
  }

  renderLegend() {
    const names = [...new Set(this.rows.flatMap((row) => row.series.map((s) => s.name)))];
    names.sort((a, b) => (b === "measured") - (a === "measured"));
    const key = names.join() + (this.rows[0]?.series || []).map((s) => s.label || "").join();
    if (key === this.key) return;
    this.key = key;
    const labels = Object.fromEntries(this.rows.flatMap((row) => row.series.map((s) => [s.name, s.label])));
    this.legend.replaceChildren(...names.map((name) => {
      const box = make("input", { type: "checkbox", onchange: (event) => {
        event.target.checked ? this.hidden.delete(name) : this.hidden.add(name);
        this.render();
      } });
      box.checked = !this.hidden.has(name);
      const swatch = make("span", { class: "ba-swatch", style: `background:${this.about.colours[name] || "#444"}` });
      return make("label", {}, box, swatch, labels[name] || name);
    }));
  }

  /** Move the cursor to a moment of the run (s). */
  setTime(seconds) {
    this.time = seconds;
    if (!this.cursor) return;
    const at = this.x(seconds);
    this.cursor.setAttribute("x1", at);
    this.cursor.setAttribute("x2", at);
    this.cursor.style.display = at < MARGIN.left - 1 || at > this.width - MARGIN.right + 1 ? "none" : "";
  }
}
