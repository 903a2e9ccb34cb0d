
"use strict";
// Draw each figure from the data beside it. What plotly would draw as a slider or a button becomes a control of the
// page, so that it can be reached and moved by keyboard and is read out.
(() => {
  const ROOM = 75; // px under the plot that axis titles need once plotly's own slider is gone

  function element(name, settings, ...inside) {
    const made = Object.assign(document.createElement(name), settings);
    made.append(...inside);
    return made;
  }

  function act(plot, step) {
    if (step.method && step.method !== "skip") Plotly[step.method](plot, ...(step.args || []));
  }

  function labelled(text, control, ...more) {
    return element("label", {}, element("span", { textContent: text }), control, ...more);
  }

  function slider(text, labels, active, suffix, move) {
    const range = element("input", { type: "range", min: 0, max: labels.length - 1, step: 1, value: active });
    const said = element("output", {});
    const say = () => {
      said.textContent = `${labels[range.value]}${suffix}`;
      range.setAttribute("aria-valuetext", said.textContent);
    };
    range.addEventListener("input", () => { say(); move(Number(range.value)); });
    say();
    return { box: labelled(text, range, said), set: (k) => { range.value = k; say(); } };
  }

  function choice(text, labels, active, move) {
    const list = element("select", {}, ...labels.map((label) => element("option", { textContent: label })));
    list.selectedIndex = active;
    list.addEventListener("change", () => move(list.selectedIndex));
    return labelled(text, list);
  }

  function plotlySlider(plot, made) {
    const steps = (made.steps || []).map((step) => ({ ...step, label: step.label || step.value || "" }));
    const prefix = ((made.currentvalue || {}).prefix || "Setting").trim().replace(/:$/, "");
    const suffix = (made.currentvalue || {}).suffix || "";
    const labels = steps.map((step) => step.label);
    const control = slider(prefix, labels, made.active || 0, suffix, (k) => act(plot, steps[k]));
    plot.on("plotly_animatingframe", (frame) => {
      const k = labels.indexOf(frame.name);
      if (k >= 0) control.set(k);
    });
    return control.box;
  }

  function plotlyMenu(plot, menu) {
    const buttons = menu.buttons || [];
    if (menu.type === "buttons") return buttons.map((one) => {
      const button = element("button", { type: "button", className: "act", textContent: one.label });
      button.addEventListener("click", () => act(plot, one));
      return button;
    });
    return [choice("Show", buttons.map((one) => one.label), menu.active || 0, (k) => act(plot, buttons[k]))];
  }

  // Curves for every combination of some settings: layout.meta has the settings and, in their order, the curves.
  function knobs(plot, made) {
    const at = made.knobs.map((knob) => knob.active);
    const show = () => {
      const k = at.reduce((sum, one, n) => sum * made.knobs[n].values.length + one, 0);
      Plotly.restyle(plot, { y: made.curves[k] });
    };
    return made.knobs.map((knob, n) => {
      const move = (k) => { at[n] = k; show(); };
      return knob.values.length > 3
        ? slider(knob.name, knob.values, knob.active, "", move).box
        : choice(knob.name, knob.values, knob.active, move);
    });
  }

  // The words belong to the drawing alone: plotly puts buttons beside it, and a picture may hold none.
  function nameDrawing(plot) {
    const [first, ...others] = plot.querySelectorAll("svg.main-svg");
    first.setAttribute("role", "img");
    first.setAttribute("aria-label", plot.getAttribute("aria-label"));
    for (const other of others) other.setAttribute("aria-hidden", "true");
    plot.removeAttribute("role");
    plot.removeAttribute("aria-label");
  }

  function draw(figure) {
    const area = figure.querySelector(".plot-area");
    const { data, layout, frames, config } = JSON.parse(figure.querySelector("script").textContent);
    if (!window.Plotly) {
      area.textContent = `plotly.min.js, which draws this figure, is not beside this page. ${area.getAttribute("aria-label")}`;
      return null;
    }
    const meta = layout.meta || {}, sliders = layout.sliders || [], menus = layout.updatemenus || [];
    delete layout.sliders;
    delete layout.updatemenus;
    const spare = sliders.length ? Math.max(0, ((layout.margin || {}).b || 0) - ROOM) : 0;
    if (spare) {
      layout.margin.b -= spare;
      if (layout.height) layout.height -= spare;
    }
    return Plotly.newPlot(area, { data, layout, frames, config }).then((plot) => {
      nameDrawing(plot);
      const made = meta.knobs ? knobs(plot, meta) : sliders.map((one) => plotlySlider(plot, one));
      made.push(...menus.flatMap((menu) => plotlyMenu(plot, menu)));
      if (made.length) {
        const controls = element("div", { className: "controls" }, ...made);
        controls.setAttribute("role", "group");
        controls.setAttribute("aria-label", "Controls of the figure above");
        figure.append(controls);
      }
    });
  }

  const start = () => Promise.all([...document.querySelectorAll("figure.plot")].map(draw)).then(() => {
    document.documentElement.dataset.drawn = "yes";
  });
  if (document.readyState === "complete") start();
  else window.addEventListener("load", start);
})();
