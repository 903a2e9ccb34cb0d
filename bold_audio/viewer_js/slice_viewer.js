// The viewer: controls, what is asked of the kernel, and what is done with its answers.

const SPEEDS = [["0.5", 0.5], ["1", 1], ["2", 2], ["4", 4], ["8", 8], ["16", 16], [FASTEST, FASTEST]];
const ROLES = { best: "Best voxel", random: "Random voxel", null: "Null voxel" };
const SETTLED = 120; // ms without a move before a voxel's course is asked for
const NEAR = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname); // the kernel is on this machine
const AHEAD = 4; // times real time up to which the next volume is fetched before it is due
const PATIENCE = 4000; // ms after which a question that was not answered is asked again

class Viewer {
  constructor(model, element) {
    this.model = model;
    this.about = model.get("about");
    this.view = Math.random().toString(36).slice(2);
    const { start, models, kinds, maps, quantities } = this.about;
    this.state = { volume: start.volume, voxel: [...start.voxel], model: start.model, kind: start.kind };
    this.state.quantity = Object.keys(quantities)[0] || "intensity";
    this.state.name = Object.keys(maps)[0] ?? null;
    this.state.threshold = 0;
    this.seq = 0;
    this.fetched = 0;
    this.ahead = null;
    this.planes = new Planes(this.about, (voxel, done) => this.move(voxel, done));
    this.timeline = this.about.n_volumes > 1 ? new Timeline(this.about, (s) => this.seek(s)) : null;
    this.player = new Player(this.about, (k, s) => this.show(k, s), (playing) => this.showPlaying(playing), () => (this.soundBox.checked = false));
    this.root = make("div", { class: "ba-viewer", role: "region", "aria-label": `Slice viewer: ${this.about.title}` });
    this.build(models, kinds, maps, quantities);
    element.append(this.root);
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.sized = new ResizeObserver(() => this.resize());
    this.sized.observe(this.root);
    this.heard = (message, buffers) => this.onAnswer(message, buffers);
    model.on("msg:custom", this.heard);
    this.resize();
    this.apply();
    this.ask();
    this.askCourse();
  }

  // --- what is on the page -------------------------------------------------------------------------------------------

  build(models, kinds, maps, quantities) {
    const { about } = this;
    const title = make("div", { class: "ba-head" }, make("strong", { text: about.title }));
    if (about.note) title.append(make("span", { class: "ba-flag", text: about.note }));
    this.readout = make("div", { class: "ba-readout", "aria-live": "off" });
    this.notes = make("div", { class: "ba-note", text: this.orientationNote() });
    this.error = make("div", { class: "ba-error", role: "alert" });
    const choices = make("div", { class: "ba-row-of" });
    const select = (label, options, value, change) => {
      const box = make("select", { "aria-label": label, onchange: (event) => change(event.target.value) }, ...options.map(([v, text]) => make("option", { value: v, text })));
      box.value = value;
      choices.append(make("label", {}, `${label} `, box));
      return box;
    };
    if (models.length) {
      this.modelBox = select("model", models.map((m) => [m, m]), this.state.model, (m) => this.choose({ model: m }));
      this.kindBox = select("prediction", this.kindOptions(), this.state.kind, (k) => this.choose({ kind: k }));
    }
    if (Object.keys(quantities).length) this.quantityBox = select("shown", Object.entries(quantities), this.state.quantity, (q) => this.choose({ quantity: q }));
    const names = Object.keys(maps);
    if (names.length) {
      this.mapBox = select("map", names.map((n) => [n, n]), names[0], (name) => this.choose({ name }));
      this.threshold = make("input", { type: "range", min: "0", step: "any", value: "0", "aria-label": "smallest size of the map that is drawn", oninput: (event) => this.choose({ threshold: +event.target.value }) });
      this.thresholdText = make("output");
      choices.append(make("label", {}, "threshold ", this.threshold, this.thresholdText));
    }
    const sliders = make("div", { class: "ba-sliders" });
    if (this.timeline) this.timeSlider = this.slider(sliders, "time", about.n_volumes, (k) => this.seekVolume(k));
    this.axisSliders = about.axes.map((axis, a) => this.slider(sliders, axis.name, about.shape[a], (v) => {
      const voxel = [...this.state.voxel];
      voxel[a] = v;
      this.move(voxel, true);
    }));
    this.root.append(title, choices, sliders, ...(this.timeline ? [this.buildPlayer()] : []), this.readout, this.planes.element, this.notes);
    if (this.timeline) this.root.append(this.buildTimeOptions(models), this.timeline.element);
    this.root.append(this.error, this.buildKeys());
  }

  kindOptions() {
    return (this.about.kinds[this.state.model] || []).map((k) => [k, k.replace("_", "-")]);
  }

  slider(parent, name, n, change) {
    const input = make("input", { type: "range", min: "0", max: String(n - 1), step: "1", "aria-label": name, "data-axis": name.split(" ")[0], oninput: (event) => change(+event.target.value) });
    const text = make("output");
    const label = make("label", { class: "ba-slider", hidden: n < 2 }, make("span", { text: name.split(" ")[0] }), input, text);
    parent.append(label);
    return { input, text };
  }

  buildPlayer() {
    this.playButton = make("button", { type: "button", class: "ba-play", "aria-pressed": "false", text: "▶ play", onclick: () => this.toggle() });
    const speed = make("select", { "aria-label": "speed", onchange: (event) => this.player.setSpeed(event.target.value === FASTEST ? FASTEST : +event.target.value) }, ...SPEEDS.map(([text, v]) => make("option", { value: v, text: text === FASTEST ? text : `${text} ×` })));
    speed.value = "1";
    this.speedBox = speed;
    const step = (text, by, label) => make("button", { type: "button", "aria-label": label, text, onclick: () => this.seekVolume(this.state.volume + by) });
    const row = make("div", { class: "ba-row-of" }, step("◀", -1, "previous volume"), this.playButton, step("▶", 1, "next volume"), make("label", {}, "speed ", speed));
    if (this.about.sound) {
      this.soundBox = make("input", { type: "checkbox", disabled: true, onchange: (event) => this.player.setMuted(!event.target.checked) });
      this.soundBox.checked = true;
      this.soundText = make("span", { text: "sound (being read)" });
      row.append(make("label", {}, this.soundBox, this.soundText));
    }
    return row;
  }

  buildTimeOptions(models) {
    const row = make("div", { class: "ba-row-of" });
    if (!models.length) return row;
    const check = (text, change, attributes = {}) => {
      const box = make("input", { type: "checkbox", onchange: (event) => change(event.target.checked), ...attributes });
      row.append(make("label", {}, box, text));
      return box;
    };
    this.zoomBox = check("only the predicted volumes", (on) => this.zoom(on), { disabled: !this.about.predicted.length });
    this.compareBox = check("best, random and null voxel instead", (on) => this.compare(on));
    this.jumps = make("span", { class: "ba-jumps" });
    row.append(this.jumps);
    return row;
  }

  buildKeys() {
    const rows = [["space", "play or pause"], [", and .", "previous and next volume"], ["on a plane: arrows, Page Up, Page Down", "move the crosshair in the plane, and the plane"], ["on a slider: arrows, Home, End", "move it"]];
    const list = make("dl", {}, ...rows.flatMap(([key, what]) => [make("dt", { text: key }), make("dd", { text: what })]));
    return make("details", { class: "ba-keys" }, make("summary", { text: "Keys" }), list);
  }

  orientationNote() {
    const { reason, tilt } = this.about;
    if (reason) return `No mm, and left and right are not labelled: ${reason}.`;
    const text = "L is the person's left, on the left of the picture.";
    return tilt > 0.5 ? `${text} The scan is tilted by ${tilt}°: mm beside the sliders hold in the middle of a slice.` : text;
  }

  resize() {
    const width = this.root.clientWidth - 18;
    if (width <= 0 || width === this.width) return;
    this.width = width;
    this.planes.resize(width);
    if (this.timeline) this.timeline.render(width);
  }

  // --- where we are --------------------------------------------------------------------------------------------------

  seekVolume(k) {
    const volume = Math.min(this.about.n_volumes - 1, Math.max(0, k));
    this.player.seek(this.about.times[volume]);
    this.show(volume, this.about.times[volume]);
  }

  seek(seconds) {
    this.player.seek(seconds);
    this.show(this.player.volumeAt(seconds), seconds);
  }

  /** Show a volume; `seconds` is where the cursor stands. */
  show(volume, seconds) {
    this.timeline?.setTime(seconds);
    if (volume === this.state.volume) return;
    this.state.volume = volume;
    this.apply();
    if (this.ahead?.answer && this.ahead.key === this.key()) this.onNext();
    else this.ask();
  }

  move(voxel, done) {
    const same = voxel.every((v, a) => v === this.state.voxel[a]);
    this.state.voxel = voxel;
    if (!same) {
      this.apply();
      this.ask();
    }
    clearTimeout(this.settled);
    if (!same || done) this.settled = setTimeout(() => this.askCourse(), done ? 0 : SETTLED);
  }

  choose(change) {
    Object.assign(this.state, change);
    if (change.model || change.kind) {
      const offered = this.about.kinds[this.state.model];
      if (!offered.includes(this.state.kind)) this.state.kind = offered[0];
      this.modelBox.value = this.state.model;
      this.kindBox.replaceChildren(...this.kindOptions().map(([v, text]) => make("option", { value: v, text })));
      this.kindBox.value = this.state.kind;
      this.compareBox.checked ? this.compare(true) : this.askCourse();
    }
    if (change.name) this.state.threshold = 0;
    this.apply();
    this.ask();
  }

  /** Controls follow the state. */
  apply() {
    const { volume, voxel, name, threshold } = this.state, { axes, times, maps, unit } = this.about;
    if (this.timeSlider) {
      this.timeSlider.input.value = volume;
      this.timeSlider.text.textContent = `${times[volume].toFixed(1)} s, volume ${volume}`;
      this.timeSlider.input.setAttribute("aria-valuetext", `${times[volume].toFixed(1)} seconds, volume ${volume}`);
      if (!this.player.playing) this.timeline.setTime(this.player.seconds);
    }
    voxel.forEach((v, a) => {
      const { input, text } = this.axisSliders[a];
      input.value = v;
      text.textContent = `${short(axes[a].at[v])}${unit && ` ${unit}`}`;
      input.setAttribute("aria-valuetext", `${axes[a].at[v]} ${unit || "voxels"}`);
    });
    if (this.threshold && name !== null) {
      this.threshold.max = Math.max(Math.abs(maps[name].low), Math.abs(maps[name].high));
      this.threshold.value = threshold;
      this.thresholdText.textContent = short(threshold);
    }
    this.planes.cross(voxel);
  }

  zoom(on) {
    const parts = this.about.predicted;
    this.timeline.zoom(on ? [parts[0][0], parts[parts.length - 1][1]] : [Math.min(0, this.about.times[0]), this.timeline.end]);
  }

  toggle() {
    this.player.playing ? this.player.pause() : this.player.play();
  }

  showPlaying(playing) {
    this.playButton.textContent = playing ? "❚❚ pause" : "▶ play";
    this.playButton.setAttribute("aria-pressed", String(playing));
    this.root.dataset.playing = playing;
    if (!playing) this.root.dataset.seconds = this.player.seconds;
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.timeline) return;
    const tag = event.target.tagName, typed = tag === "SELECT" || (tag === "INPUT" && event.target.type !== "range");
    if (event.key === " " && !typed && tag !== "BUTTON" && tag !== "SUMMARY") this.toggle();
    else if ((event.key === "," || event.key === ".") && tag !== "SELECT") this.seekVolume(this.state.volume + (event.key === "." ? 1 : -1));
    else return;
    event.preventDefault();
  }

  // --- what is asked, and the answers --------------------------------------------------------------------------------

  send(question) {
    this.model.send({ ...question, view: this.view });
  }

  /** Ask for the planes. One question at a time: what moved meanwhile is asked for when the answer is there. */
  ask() {
    const now = performance.now();
    if (this.waiting && now - this.waiting < PATIENCE) {
      this.stale = true;
      return;
    }
    this.waiting = now;
    this.stale = false;
    this.send({ type: "planes", seq: ++this.seq, near: NEAR, ...this.state });
  }

  /** What planes depend on. */
  key(volume = this.state.volume) {
    return JSON.stringify({ ...this.state, volume });
  }

  /** While it plays with the clock, the next volume is fetched before it is due: a late answer is not seen. */
  askAhead() {
    const volume = this.state.volume + 1, { playing, speed } = this.player;
    if (!playing || !(speed <= AHEAD) || volume >= this.about.n_volumes) return;
    this.ahead = { key: this.key(volume), seq: `ahead ${++this.fetched}` };
    this.send({ type: "planes", near: NEAR, ...this.state, volume, seq: this.ahead.seq });
  }

  /** The volume that was fetched ahead is due. */
  onNext() {
    const { answer, bytes } = this.ahead;
    this.ahead = null;
    this.stale = false;
    this.waiting = 0;
    this.seq += 1; // what was asked for before is not wanted any more
    this.paint(answer, bytes);
  }

  askCourse() {
    if (this.timeline && !(this.compareBox && this.compareBox.checked)) this.send({ type: "course", voxel: this.state.voxel, kind: this.state.kind });
  }

  compare(on) {
    this.jumps.replaceChildren();
    if (!on) return this.askCourse();
    this.timeline.setRows([], "Looking for the best voxel …");
    this.send({ type: "compare", model: this.state.model, kind: this.state.kind });
  }

  onAnswer(message, buffers) {
    if (message.type === "go") return this.go(message);
    if (message.view !== this.view) return;
    const bytes = buffers && buffers.length ? buffers.map((b) => new Uint8Array(b.buffer || b, b.byteOffset || 0, b.byteLength)) : [];
    const answers = { planes: () => this.onPlanes(message, bytes[0]), course: () => this.onCourse(message, bytes[0]), compare: () => this.onCompared(message, bytes[0]), loudness: () => this.timeline.setLoudness(bytes[0]), sound: () => this.onSound(message, bytes[0]), error: () => this.onError(message) };
    answers[message.type]?.();
  }

  go({ volume, voxel, model, kind }) {
    if (volume !== undefined) this.seekVolume(volume);
    if (voxel) this.move(voxel, true);
    if (model || kind) this.choose({ ...(model && { model }), ...(kind && { kind }) });
  }

  onPlanes(answer, bytes) {
    if (this.ahead && answer.seq === this.ahead.seq) {
      Object.assign(this.ahead, { answer, bytes });
      if (this.ahead.key === this.key()) this.onNext(); // late: it is due already
      return;
    }
    if (answer.seq !== this.seq) return;
    this.waiting = 0;
    this.paint(answer, bytes);
  }

  paint(answer, bytes) {
    this.error.textContent = "";
    this.planes.paint(answer, bytes);
    this.showReadout(answer);
    Object.assign(this.root.dataset, { volume: answer.volume, voxel: answer.voxel.join(), seq: answer.seq, model: answer.model ?? "", kind: answer.kind ?? "", quantity: answer.quantity });
    const heard = this.player.heard ? this.player.soundSeconds : null;
    this.root.dispatchEvent(new CustomEvent("painted", { bubbles: true, detail: { volume: answer.volume, ms: answer.ms, heard, seq: answer.seq } }));
    if (!this.first) {
      this.first = true;
      if (this.about.sound) this.send({ type: "sound", plays: this.playable() });
    }
    if (this.stale) this.ask();
    this.player.next();
    this.askAhead();
  }

  showReadout(answer) {
    const { unit } = this.about, index = answer.index.join(", ");
    const where = unit ? `x ${short(answer.place[0])}, y ${short(answer.place[1])}, z ${short(answer.place[2])} mm (voxel ${index})` : `voxel ${index}`;
    const regions = answer.regions.length ? `; in ${answer.regions.join(", ")}` : "";
    this.readout.textContent = `Crosshair at ${where}${regions}`;
  }

  rowsOf(names, bytes) {
    const values = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)), n = this.about.n_volumes;
    return names.map((name, i) => ({ name, values: values.subarray(i * n, (i + 1) * n) }));
  }

  onCourse({ names, r, voxel }, bytes) {
    if (this.compareBox && this.compareBox.checked) return;
    if (!names.length) return this.timeline.setRows([], "This voxel is outside the mask.");
    const series = this.rowsOf(names, bytes).map((s) => ({ ...s, strong: s.name === "measured" || s.name === this.state.model, label: s.name in r ? `${s.name} (r ${r[s.name] === null ? "n/a" : short(+r[s.name].toFixed(3))})` : s.name }));
    series.sort((a, b) => Boolean(a.strong) - Boolean(b.strong));
    this.root.dataset.course = voxel.join();
    this.timeline.setRows([{ title: `This voxel, ${this.about.value_unit}`, series }]);
  }

  onCompared({ found, model, kind }, bytes) {
    if (!this.compareBox.checked || model !== this.state.model || kind !== this.state.kind) return; // asked for before
    const there = found.filter((f) => f.voxel), names = there.flatMap(() => ["measured", model]);
    const all = this.rowsOf(names, bytes);
    const rows = there.map((f, i) => ({ title: `${ROLES[f.role]}: r = ${short(+f.r.toFixed(3))}, ${f.note}`, series: all.slice(2 * i, 2 * i + 2).map((s) => ({ ...s, strong: true })) }));
    const missing = found.filter((f) => !f.voxel).map((f) => `${ROLES[f.role]}: ${f.note}.`);
    this.timeline.setRows(rows, missing.join(" "));
    this.jumps.replaceChildren("go to: ", ...there.map((f) => make("button", { type: "button", text: f.role, onclick: () => this.move(f.voxel, true) })));
    this.root.dataset.compared = there.map((f) => `${f.role} ${f.voxel.join(",")} ${f.r}`).join(";");
  }

  playable() {
    const audio = new Audio(), types = { "audio/ogg": 'audio/ogg; codecs="vorbis"', "audio/mpeg": "audio/mpeg" };
    return Object.keys(types).filter((kind) => audio.canPlayType(types[kind]) !== "");
  }

  onSound({ start, duration, mime }, bytes) {
    this.player.setSound(new Blob([bytes], { type: mime }), start, duration);
    this.soundBox.disabled = false;
    this.soundText.textContent = "sound";
    this.root.dataset.sound = "ready";
  }

  onError({ text }) {
    this.waiting = 0;
    this.error.textContent = text;
    if (this.soundText && text.startsWith("no sound")) this.soundText.textContent = "no sound";
  }

  close() {
    this.player.close();
    this.sized.disconnect();
    clearTimeout(this.settled);
    this.model.off("msg:custom", this.heard);
  }
}

function render({ model, el }) {
  const viewer = new Viewer(model, el);
  return () => viewer.close();
}

export default { render };
