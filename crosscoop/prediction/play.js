"use strict";

// The pictures of `crosscoop demo`. Labels are coloured here: opacity, legend and pointer do not involve the server.
// Gradio runs this file as the body of a function with `element`, `props` and `watch`.

const page = element.querySelector(".play");
const enlarged = new Set(); // this and the opacity survive the next image
let opacity = 60;
let turn = 0;

const make = (parent, tag, properties = {}) => parent.appendChild(Object.assign(document.createElement(tag), properties));

const unpacked = async (text) => {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};

const addOpacity = (parent) => {
  const label = make(parent, "label", { textContent: "Opacity" });
  const slider = make(label, "input", { type: "range", min: 0, max: 100, value: opacity });
  const share = make(label, "output");
  const show = () => {
    opacity = slider.value;
    share.textContent = `${opacity} %`;
    page.style.setProperty("--opacity", opacity / 100);
  };
  slider.addEventListener("input", show);
  show();
};

// A click on a class calls `select` with its index, or with null for all classes.
const addLegend = (parent, classes, select) => {
  const legend = make(parent, "div", { className: "legend" });
  for (const [index, { name, color }] of classes) {
    const button = make(legend, "button", { type: "button", title: "Show only this class, or all" });
    make(button, "i").style.background = `rgb(${color})`;
    button.append(name);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const pressed = button.getAttribute("aria-pressed") === "true";
      for (const other of legend.children) other.setAttribute("aria-pressed", String(other === button && !pressed));
      select(pressed ? null : index);
    });
  }
};

const draw = async () => {
  const shown = props.value;
  const mine = ++turn;
  const content = document.createDocumentFragment();
  if (shown.hint) make(content, "p", { textContent: shown.hint });
  if (shown.error) make(content, "p", { className: "error", textContent: shown.error }).setAttribute("role", "alert");

  const [width, height] = shown.size ?? [1, 1];
  const classes = new Map((shown.classes ?? []).map((each) => [each.index, each]));
  const panels = [];

  const paint = (alone) => {
    for (const { canvas, labels, names } of panels) {
      const table = new Uint32Array(256); // RGBA, little-endian
      for (const [index, { color, clear }] of names) {
        const visible = names !== classes || alone === null ? !clear : alone === index;
        if (visible) table[index] = (255 << 24) | (color[2] << 16) | (color[1] << 8) | color[0];
      }
      const pixels = Uint32Array.from(labels, (label) => table[label]);
      const data = new ImageData(new Uint8ClampedArray(pixels.buffer), width, height);
      canvas.getContext("2d").putImageData(data, 0, 0);
    }
  };
  const point = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const place = (offset, length, pixels) => Math.min(Math.max(Math.floor((offset / length) * pixels), 0), pixels - 1);
    const x = place(event.clientX - box.left, box.width, width);
    const y = place(event.clientY - box.top, box.height, height);
    page.classList.add("pointing");
    page.style.setProperty("--x", `${((x + 0.5) / width) * 100}%`);
    page.style.setProperty("--y", `${((y + 0.5) / height) * 100}%`);
    for (const { labels, names, under } of panels) {
      const { name, color, clear } = names.get(labels[y * width + x]);
      under.textContent = name;
      under.style.setProperty("--color", names === classes || !clear ? `rgb(${color})` : "transparent");
    }
  };
  const leave = (event) => {
    if (event.pointerType === "touch") return; // what a tap shows stays
    page.classList.remove("pointing");
    for (const { under } of panels) under.textContent = "";
  };

  if (shown.image) {
    const tools = make(content, "div", { className: "tools" });
    addOpacity(tools);
    addLegend(tools, classes, paint);
  }
  const scene = make(content, "div", { className: "rows" });
  const rows = make(content, "div", { className: "rows" });
  for (const row of shown.scene ? [shown.scene, ...shown.rows] : shown.rows) {
    const section = make(row === shown.scene ? scene : rows, "section");
    const head = make(section, "div");
    make(head, "h3", { textContent: row.title });
    make(head, "p", { className: "quiet", textContent: row.facts.join(" · ") });
    for (const note of row.notes) make(head, "p", { className: "note", textContent: note });
    const grid = make(section, "div", { className: "grid" });
    for (const { title, note, labels, meanings } of row.panels) {
      const figure = make(grid, "figure", { className: meanings ? "marked" : "" });
      make(figure, "figcaption", { textContent: title });
      const picture = make(figure, "button", { type: "button", className: "picture", title: "Enlarge or reduce" });
      picture.style.aspectRatio = `${width} / ${height}`;
      make(picture, "img", { src: shown.image, alt: title, draggable: false });
      const canvas = make(picture, "canvas", { width, height });
      make(picture, "i", { className: "cross" });
      const below = make(figure, "div", { className: "below" });
      make(below, "div", { className: "quiet", textContent: note });
      const under = make(below, "output", { className: "under" });

      const key = `${row.title} ${title}`;
      figure.classList.toggle("wide", enlarged.has(key));
      picture.addEventListener("click", () => {
        if (figure.classList.toggle("wide")) enlarged.add(key);
        else enlarged.delete(key);
      });
      for (const event of ["pointermove", "pointerdown"]) picture.addEventListener(event, point);
      picture.addEventListener("pointerleave", leave);
      const marks = meanings?.map((name, index) => [index, { name, color: shown.mark, clear: index === 0 }]);
      const names = marks ? new Map(marks) : classes;
      if (labels) panels.push({ canvas, under, names, labels: await unpacked(labels) });
    }
  }
  if (mine !== turn) return; // there is a newer image already
  paint(null);
  page.replaceChildren(content);
};

watch("value", draw);
draw();
