// Planes: bytes and a lookup table → canvases, with a crosshair that the mouse and the arrow keys move.

const TITLES = { measured: "measured", predicted: "predicted", difference: "predicted − measured", mean: "mean volume", map: "map over the mean" };

const FOCUSED = ["button", "input", "select", "summary"];

/** An element with attributes (text, class, on…) and children. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  // JupyterLab's own keys (x cuts a cell) are off where this stands on the focused element itself.
  if (FOCUSED.includes(tag) || "tabindex" in attributes) element.setAttribute("data-lm-suppress-shortcuts", "true");
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** 256 colours as 32-bit pixels; the byte 0 is transparent. */
function pixelsOf(hex) {
  const bytes = new Uint8ClampedArray(1024);
  for (let i = 1; i < 256; i++) {
    for (let c = 0; c < 3; c++) bytes[4 * i + c] = parseInt(hex.substr(6 * i + 2 * c, 2), 16);
    bytes[4 * i + 3] = 255;
  }
  return new Uint32Array(bytes.buffer);
}

function gradientOf(hex) {
  const stops = [];
  for (let i = 1; i < 256; i += 14) stops.push("#" + hex.substr(6 * i, 6));
  stops.push("#" + hex.substr(6 * 255, 6));
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

/** A number in about four digits, with a real minus. */
function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const text = Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4));
  return text.replace("-", "−");
}

/** The panels side by side. `moveTo(voxel, done)` is called while the crosshair is moved, and when it is let go. */
class Planes {
  constructor(about, moveTo) {
    this.about = about;
    this.moveTo = moveTo;
    this.voxel = about.start.voxel;
    this.luts = Object.fromEntries(Object.entries(about.luts).map(([name, hex]) => [name, pixelsOf(hex)]));
    this.panels = about.panels.map((name) => this.makePanel(name));
    this.element = make("div", { class: "ba-panels" }, ...this.panels.map((p) => p.element));
  }

  makePanel(name) {
    const planes = this.about.planes.map((plane) => this.makePlane(name, plane));
    const bar = make("div", { class: "ba-bar" });
    const low = make("span"), high = make("span"), value = make("span", { class: "ba-value" });
    const empty = make("div", { class: "ba-empty", hidden: true });
    const title = make("h4", { text: TITLES[name] });
    const scale = make("div", { class: "ba-scale" }, low, bar, high);
    const element = make("div", { class: "ba-panel", role: "group", "aria-label": TITLES[name] }, title, ...planes.map((p) => p.element), scale, value, empty);
    return { name, planes, bar, low, high, value, empty, element, look: null };
  }

  makePlane(panel, plane) {
    const [width, height] = [this.about.shape[plane.right], this.about.shape[plane.up]];
    const canvas = make("canvas", { width, height, "aria-hidden": "true", "data-panel": panel, "data-plane": plane.name });
    const across = make("div", { class: "ba-cross ba-across" }), down = make("div", { class: "ba-cross ba-down" });
    const element = make("div", { class: "ba-plane", tabindex: "0", role: "group", "data-panel": panel, "data-plane": plane.name }, canvas, across, down);
    if (plane.sides) {
      for (const [side, where] of [[plane.sides[0], "ba-left"], [plane.sides[1], "ba-right"]]) {
        element.append(make("span", { class: `ba-side ${where}`, text: side, "aria-hidden": "true" }));
      }
    }
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const image = context.createImageData(width, height);
    const made = { ...plane, element, canvas, context, image, pixels: new Uint32Array(image.data.buffer), across, down, width, height };
    this.listen(made);
    return made;
  }

  listen(plane) {
    const at = (event) => {
      const box = plane.canvas.getBoundingClientRect();
      const inside = (value, size) => Math.min(size - 1, Math.max(0, Math.floor(value)));
      const voxel = [...this.voxel];
      voxel[plane.right] = inside(((event.clientX - box.left) / box.width) * plane.width, plane.width);
      voxel[plane.up] = plane.height - 1 - inside(((event.clientY - box.top) / box.height) * plane.height, plane.height);
      return voxel;
    };
    plane.element.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      plane.element.setPointerCapture(event.pointerId);
      plane.held = true;
      this.moveTo(at(event), false);
    });
    plane.element.addEventListener("pointermove", (event) => plane.held && this.moveTo(at(event), false));
    for (const end of ["pointerup", "pointercancel"]) {
      plane.element.addEventListener(end, (event) => {
        if (plane.held) this.moveTo(end === "pointerup" ? at(event) : this.voxel, true);
        plane.held = false;
      });
    }
    const keys = { ArrowLeft: [plane.right, -1], ArrowRight: [plane.right, 1], ArrowUp: [plane.up, 1], ArrowDown: [plane.up, -1], PageUp: [plane.cut, 1], PageDown: [plane.cut, -1] };
    plane.element.addEventListener("keydown", (event) => {
      const move = keys[event.key];
      if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const voxel = [...this.voxel];
      voxel[move[0]] = Math.min(this.about.shape[move[0]] - 1, Math.max(0, voxel[move[0]] + move[1]));
      this.moveTo(voxel, true);
    });
  }

  /** Give every plane its size on the page: the same mm are equally long in all of them. */
  resize(width) {
    const { shape, sizes, planes } = this.about;
    const widest = Math.max(...planes.map((p) => shape[p.right] * sizes[p.right]));
    const tall = planes.reduce((sum, p) => sum + shape[p.up] * sizes[p.up], 0);
    const gap = 14 * (this.panels.length - 1);
    const scale = Math.min((width - gap) / this.panels.length / widest, 300 / widest, 640 / tall);
    for (const panel of this.panels) {
      for (const plane of panel.planes) {
        plane.element.style.width = `${(plane.width * sizes[plane.right] * scale).toFixed(2)}px`;
        plane.element.style.height = `${(plane.height * sizes[plane.up] * scale).toFixed(2)}px`;
      }
      panel.bar.style.width = `${Math.max(16, widest * scale - 100)}px`;
      panel.element.style.width = `${Math.max(widest * scale, 100)}px`;
    }
  }

  /** Paint an answer of the kernel. */
  paint(answer, bytes) {
    let at = 0;
    answer.panels.forEach((facts, n) => {
      const panel = this.panels[n], layers = facts.name === "map" ? ["grey", facts.look] : [facts.look];
      const first = panel.planes.reduce((sum, p) => sum + p.pixels.length, 0);
      panel.planes.reduce((start, plane) => {
        layers.forEach((look, layer) => {
          const lut = this.luts[look], from = start + layer * first;
          for (let i = 0; i < plane.pixels.length; i++) {
            const byte = bytes[from + i];
            if (layer === 0 || byte) plane.pixels[i] = lut[byte];
          }
        });
        plane.context.putImageData(plane.image, 0, 0);
        return start + plane.pixels.length;
      }, at);
      at += first * layers.length;
      this.dress(panel, facts);
    });
  }

  dress(panel, facts) {
    const key = `${facts.look} ${facts.low} ${facts.high}`;
    if (panel.key !== key) {
      panel.key = key;
      panel.bar.style.background = gradientOf(this.about.luts[facts.look]);
      panel.low.textContent = short(facts.low);
      panel.high.textContent = short(facts.high);
      panel.element.dataset.look = panel.name === "map" ? "grey" : facts.look;
    }
    panel.value.textContent = facts.empty ? "" : facts.value === null ? "outside the mask" : `here: ${short(facts.value)}`;
    panel.empty.hidden = !facts.empty;
    panel.empty.textContent = facts.empty || "";
  }

  /** Move the crosshair, before the kernel has answered. */
  cross(voxel) {
    this.voxel = voxel;
    for (const panel of this.panels) {
      for (const plane of panel.planes) {
        plane.down.style.left = `${((voxel[plane.right] + 0.5) / plane.width) * 100}%`;
        plane.across.style.top = `${((plane.height - voxel[plane.up] - 0.5) / plane.height) * 100}%`;
        const axis = this.about.axes[plane.cut];
        const label = `${TITLES[panel.name]}, ${plane.name} plane at ${axis.name} ${axis.at[voxel[plane.cut]]}; arrow keys move the crosshair, page keys the plane`;
        plane.element.setAttribute("aria-label", label);
      }
    }
  }
}
