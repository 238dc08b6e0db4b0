// Figures with their course: rates are differences of the engine's counters.

import { element } from "./lists.js";
import { PINNED, USED } from "./model.js";
import { number } from "./words.js";

const SHOWN_SECONDS = 120;
const KEPT_POINTS = 2000;
const RATE_SECONDS = 1.5; // over which a rate is taken

const FIGURES = [
  { id: "generated", title: "generated", unit: "tokens/s", text: number },
  { id: "prompt", title: "prompts", unit: "tokens/s", text: number },
  { id: "step", title: "a step takes", unit: "ms", text: number },
  { id: "hits", title: "prefix cache found", unit: "% of prompts", text: number },
  { id: "pool", title: "device pool in use", unit: "%", text: number, top: 100 },
  { id: "running", title: "running", unit: "sequences", text: number },
  { id: "waiting", title: "waiting", unit: "sequences", text: number },
];

/** The figures of a frame, given an earlier one; rates are null where nothing was done. */
export function figuresOf(frame, earlier, pool) {
  const now = frame.totals, before = earlier?.totals;
  const seconds = earlier ? frame.seconds - earlier.seconds : 0;
  const grown = (name) => (before ? now[name] - before[name] : 0);
  const rate = (name) => (seconds > 0 ? Math.max(0, grown(name)) / seconds : null);
  return {
    generated: rate("generated_tokens"),
    prompt: rate("prompt_tokens"),
    step: grown("steps") > 0 ? (1000 * grown("step_seconds")) / grown("steps") : null,
    hits: grown("looked_up") > 0 ? (100 * grown("found")) / grown("looked_up") : null,
    pool,
    running: frame.numRunning,
    waiting: frame.numWaiting,
  };
}

/** Used blocks of the device, in per cent. */
export function usedShare(tiers) {
  const device = tiers.get("device");
  if (!device || !device.size) return null;
  const census = device.census();
  return (100 * (census[USED] + census[PINNED])) / device.size;
}

export class Figures {
  #points = []; // {seconds, values}
  #frames = []; // the latest with totals, as far back as rates reach

  constructor(parent, page) {
    this.page = page;
    this.tiles = FIGURES.map((figure) => {
      const value = element("strong", "", "—");
      const canvas = element("canvas");
      canvas.setAttribute("role", "img");
      parent.append(element("div", "figure", element("span", "title", figure.title),
        element("span", "value", value, " ", element("small", "", figure.unit)), canvas));
      return { ...figure, value, canvas };
    });
  }

  /** Takes a frame in. */
  note(frame, tiers) {
    if (frame.totals === null) return;
    if (this.#frames.length && frame.totals.steps < this.#frames.at(-1).totals.steps) this.#frames = []; // another engine
    while (this.#frames.length > 1 && frame.seconds - this.#frames[1].seconds >= RATE_SECONDS) this.#frames.shift();
    const values = figuresOf(frame, this.#frames[0], usedShare(tiers));
    this.#frames.push({ seconds: frame.seconds, totals: frame.totals });
    this.#points.push({ seconds: frame.seconds, values });
    if (this.#points.length > KEPT_POINTS) this.#points.shift();
  }

  /** Shows the figures as of a time. */
  show(seconds) {
    const end = this.#points.findLastIndex((point) => point.seconds <= seconds);
    const points = this.#points.slice(0, end + 1).filter((point) => point.seconds > seconds - SHOWN_SECONDS);
    for (const tile of this.tiles) {
      // Where nothing was done, what was found last still says something.
      const value = points.findLast((point) => point.values[tile.id] !== null)?.values[tile.id] ?? null;
      const text = value === null ? "—" : tile.text(value);
      if (tile.value.textContent !== text) tile.value.textContent = text;
      tile.canvas.setAttribute("aria-label", `${tile.title}: ${text} ${tile.unit}`);
      this.#draw(tile, points, seconds);
    }
  }

  #draw({ canvas, id, top }, points, now) {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const values = points.map((point) => point.values[id]);
    const highest = top ?? Math.max(1e-9, ...values.filter((value) => value !== null));
    const x = (point) => width - ((now - point.seconds) / SHOWN_SECONDS) * width;
    const y = (value) => height - 1.5 - (value / highest) * (height - 4);
    context.strokeStyle = this.page.palette.grid;
    context.beginPath();
    context.moveTo(0, height - 0.5);
    context.lineTo(width, height - 0.5);
    context.stroke();
    const line = points.map((point, i) => [x(point), values[i]]).filter(([, value]) => value !== null);
    if (line.length < 2) return;
    context.beginPath();
    line.forEach(([at, value], i) => (i ? context.lineTo(at, y(value)) : context.moveTo(at, y(value))));
    context.strokeStyle = this.page.palette.accent;
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.stroke();
    context.lineTo(line.at(-1)[0], height);
    context.lineTo(line[0][0], height);
    context.globalAlpha = 0.14;
    context.fillStyle = this.page.palette.accent;
    context.fill();
  }
}
