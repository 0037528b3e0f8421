// The figure of docs/idea.md: a forward pass of two branches, step by step, under any of the strategies.
"use strict";
{
  const POINTS = ["connection1", "aspp", "connection2", "decoder"];
  const LANES = { top: 60, bottom: 240 };
  // part, label, left edge, width
  const BOXES = [
    ["backbone", "backbone", 104, 92],
    ["layers", "1×1", 250, 40], ["layers", "3×3", 296, 40], ["layers", "3×3", 342, 40], ["layers", "3×3", 388, 40],
    ["layers", "pool", 434, 40],
    ["join", "join", 490, 44],
    ["refine", "low", 580, 48], ["refine", "first", 634, 48], ["refine", "second", 688, 48],
    ["classifier", "classifier", 762, 88],
  ];
  const ARROWS = { connection1: [223], aspp: [270, 316, 362, 408, 454], connection2: [557], decoder: [604, 658, 712] };
  // what is computed, or where maps are exchanged
  const STEPS = [
    ["image", "The image enters both branches. Each normalises it as its backbone was trained."],
    ["backbone", "The two backbones differ. Each computes a low map at stride 4, kept for its decoder, and a high map at " +
      "stride 16, rich in meaning and coarse in space."],
    ["connection1", "Connection C1 exchanges the high maps, before any other layer uses them."],
    ["layers", "ASPP processes the high map in five ways: a 1×1 convolution, three 3×3 convolutions with growing gaps, and " +
      "the mean of the whole image."],
    ["aspp", "Each of the five maps is exchanged as soon as both branches have computed it."],
    ["join", "Each branch concatenates its five maps and projects them: the context."],
    ["connection2", "Connection C2 exchanges the contexts."],
    ["refine", "The decoder refines the context with the detail of the low map: a projection of the low map, then two " +
      "3×3 convolutions."],
    ["decoder", "After each of the decoder's three layers, the maps are exchanged once more."],
    ["classifier", "Each branch has its own classifier, and its own loss in training: its logits alone already are a " +
      "segmentation."],
    ["ensemble", "The sum of the logits is the prediction of the pair, the ensemble."],
  ];

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    element.append(...children);
    return element;
  };
  const box = (part, lane, label, x, y, width, height = 56) => {
    const group = make("g", { "data-part": part, "data-lane": lane, "data-label": label });
    group.append(make("rect", { x, y: y - height / 2, width, height, rx: 5 }));
    group.append(make("text", { x: x + width / 2, y: y + 4 }, label));
    return group;
  };

  const draw = () => {
    const svg = make("svg", { class: "forward", viewBox: "0 0 860 300", role: "img", "aria-label": "Forward pass" });
    for (const strength of ["soft", "strong"]) {
      const stops = ["top", "bottom"].map((lane, i) => make("stop", { class: `${lane} ${strength}`, offset: i }));
      svg.append(make("linearGradient", { id: `forward-${strength}` }, ...stops));
    }
    for (const [name, y] of Object.entries(LANES)) {
      svg.append(make("path", { class: "lane", d: `M44 150V${y}H806V150` }));
      svg.append(make("text", { class: "name", x: 4, y: name === "top" ? 20 : 292 }, name));
    }
    for (const [point, places] of Object.entries(ARROWS)) {
      const boxed = point === "aspp" || point === "decoder";
      const [start, end] = boxed ? [LANES.top + 28, LANES.bottom - 28] : [LANES.top, LANES.bottom];
      for (const x of places) {
        const group = make("g", { class: `exchange ${point}`, "data-point": point });
        group.append(make("line", { x1: x, y1: start + 9, x2: x, y2: end - 9 }));
        group.append(make("path", { class: "tip", "data-to": "top", d: `M${x - 5} ${start + 12}l5-10 5 10z` }));
        group.append(make("path", { class: "tip", "data-to": "bottom", d: `M${x - 5} ${end - 12}l5 10 5-10z` }));
        svg.append(group);
      }
      const middle = (places[0] + places.at(-1)) / 2;
      svg.append(make("text", { class: `label ${point}`, x: middle, y: 22 }, point));
    }
    svg.append(box("image", "both", "image", 10, 150, 68));
    svg.append(box("ensemble", "both", "ensemble", 762, 150, 88, 40));
    for (const [lane, y] of Object.entries(LANES)) {
      BOXES.forEach(([part, label, x, width]) => svg.append(box(part, lane, label, x, y, width)));
    }
    return svg;
  };

  const start = (figure) => {
    const strategies = JSON.parse(figure.dataset.strategies);
    const [svg, caption, scroll] = [draw(), document.createElement("p"), document.createElement("div")];
    const [controls, choice] = [document.createElement("div"), document.createElement("select")];
    const buttons = ["Back", "Next", "Play"].map((label) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: label });
      return button;
    });
    const [back, next, play] = buttons;
    Object.keys(strategies).forEach((name) => choice.append(new Option(name, name, false, name === "cross_c1_c2")));
    choice.setAttribute("aria-label", "Connection strategy");
    controls.className = "forward-controls";
    controls.append(...buttons, choice);
    caption.className = "forward-caption";
    caption.setAttribute("aria-live", "polite");
    scroll.className = "forward-scroll";
    scroll.append(svg);
    figure.append(controls, scroll, caption);
    let [step, timer] = [0, null];

    const exchange = (point, { points, direction }) => {
      if (!points.includes(point)) return "This strategy does not connect this point: each branch keeps its own map.";
      if (direction === "both") return "Both send, and each receiver merges: own + received. Both then carry the same map.";
      const [sender, receiver] = direction === "top_to_bottom" ? ["Top", "bottom"] : ["Bottom", "top"];
      return `${sender} sends, ${receiver} merges: own + received. ${sender} keeps its own map.`;
    };
    const show = () => {
      const strategy = strategies[choice.value];
      const [name, text] = STEPS[step];
      const order = STEPS.map(([each]) => each);
      const reached = (each) => ({ done: order.indexOf(each) < step, active: each === name });
      const mixes = (point, lane) => strategy.points.includes(point)
        && (strategy.direction === "both" || strategy.direction.endsWith(`to_${lane}`));
      const classes = (element, states) =>
        Object.entries(states).forEach(([key, on]) => element.classList.toggle(key, on));
      svg.querySelectorAll("[data-part]").forEach((element) => {
        const { part, lane, label } = element.dataset;
        const before = POINTS.filter((point) => order.indexOf(point) < order.indexOf(part));
        const inside = label === "second" ? ["decoder"] : []; // its own layers exchange one after the other
        const mixed = part === "ensemble"
          || (label !== "low" && [...before, ...inside].some((point) => mixes(point, lane)));
        const { done, active } = reached(part);
        classes(element, { done: done || active, active, "is-mixed": mixed,
          "is-top": !mixed && lane === "top", "is-bottom": !mixed && lane === "bottom" });
      });
      svg.querySelectorAll("[data-point]").forEach((element) => {
        const { point } = element.dataset;
        classes(element, { ...reached(point), off: !strategy.points.includes(point) });
        element.querySelectorAll(".tip").forEach((tip) => (tip.style.display = mixes(point, tip.dataset.to) ? "" : "none"));
      });
      const more = ARROWS[name] ? ` ${exchange(name, strategy)}` : "";
      caption.textContent = `${step + 1} of ${STEPS.length}. ${text}${more}`;
      [back.disabled, next.disabled] = [step === 0, step === STEPS.length - 1];
      const shown = svg.querySelector(".active")?.getBoundingClientRect();
      if (shown) scroll.scrollLeft += shown.left + shown.width / 2 - scroll.getBoundingClientRect().left - scroll.clientWidth / 2;
    };
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    };
    const go = (to) => {
      step = Math.max(0, Math.min(STEPS.length - 1, to));
      show();
    };
    back.onclick = () => (stop(), go(step - 1));
    next.onclick = () => (stop(), go(step + 1));
    choice.onchange = show;
    play.onclick = () => {
      if (timer) return stop();
      if (step === STEPS.length - 1) go(0);
      play.textContent = "Pause";
      timer = setInterval(() => (step === STEPS.length - 1 ? stop() : go(step + 1)), 2500);
    };
    show();
  };

  document.querySelectorAll("[data-strategies]").forEach(start);
}
