// The lists beside the map: running requests, the queue, preemptions.

import { css } from "./colours.js";
import { duration, number, plural, purpose, short, waitReason, waitState } from "./words.js";

const KEPT_PREEMPTIONS = 256;
const TIMELINE_SECONDS = 120;
const DEFAULT_TENANT = "default";

/** A new element with classes, text and children. */
export function element(tag, classes = "", ...content) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  made.append(...content);
  return made;
}

/** Rows by key: what stays is changed in place, so that focus and hovering survive. */
class Rows {
  #rows = new Map();

  constructor(parent, make, update) {
    Object.assign(this, { parent, make, update });
  }

  show(items, keyOf) {
    const kept = new Map();
    let before = null;
    for (const item of items) {
      const key = keyOf(item);
      const row = this.#rows.get(key) ?? this.make(item);
      kept.set(key, row);
      this.update(row, item);
      const place = before === null ? this.parent.firstElementChild : before.nextElementSibling;
      if (place !== row) this.parent.insertBefore(row, place);
      before = row;
    }
    for (const [key, row] of this.#rows) if (!kept.has(key)) row.remove();
    this.#rows = kept;
  }
}

function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** page: {palette, names: Map, select(key), selected()} */
export class Lists {
  #preemptions = new Map();

  constructor(page) {
    this.page = page;
    const find = (id) => document.getElementById(id);
    this.find = find;
    this.running = new Rows(find("running"), () => this.#makeRunning(), (row, item) => this.#updateRunning(row, item));
    this.waiting = new Rows(find("waiting"), () => this.#makeWaiting(), (row, item) => this.#updateWaiting(row, item));
    this.preempted = new Rows(find("preemptions"), () => this.#makePreemption(), (row, item) => this.#updatePreemption(row, item));
    this.longest = 1;
  }

  /** What a request is called: the end of its id, or its key while that is not known. */
  nameOf(key) {
    return short(this.page.names.get(key) ?? `request ${key}`);
  }

  /** Takes a frame's preemptions in, whatever is shown at the moment. An engine counts its own from 0. */
  note(frame) {
    if (frame.kind === "all") this.#preemptions.clear();
    for (const preemption of frame.preemptions) this.#preemptions.set(preemption.number, preemption);
    for (const number of this.#preemptions.keys()) {
      if (this.#preemptions.size <= KEPT_PREEMPTIONS) break;
      this.#preemptions.delete(number);
    }
  }

  show(frame) {
    this.longest = Math.max(1, ...frame.running.map((row) => row.num_tokens));
    const several = new Set();
    const seen = new Set();
    for (const row of frame.running) (seen.has(row.key) ? several : seen).add(row.key);
    this.several = several;
    this.running.show(frame.running, (row) => `${row.key}/${row.index}`);
    this.waiting.show(frame.waiting, (row) => `${row.key}/${row.index}`);
    setText(this.find("running-count"), countOf(frame.numRunning, frame.running.length));
    setText(this.find("waiting-count"), countOf(frame.numWaiting, frame.waiting.length));
    this.#showPreemptions(frame.seconds);
  }

  // ── running ────────────────────────────────────────────────────────────────────────────────────────────────

  #makeRow(...content) {
    const row = element("button", "row", ...content);
    row.type = "button";
    row.addEventListener("click", () => this.page.select(row.key));
    return row;
  }

  #makeRunning() {
    const row = this.#makeRow(
      element("span", "swatch"), element("span", "name"), element("span", "tenant"), element("span", "time"),
      element("span", "bar", element("span", "prompt"), element("span", "computed")), element("span", "facts"),
    );
    return row;
  }

  #updateRunning(row, item) {
    this.#updateHead(row, item);
    const done = Math.min(item.num_computed, item.num_tokens);
    const [prompt, computed] = row.querySelector(".bar").children;
    prompt.style.width = `${(100 * item.num_prompt) / this.longest}%`;
    computed.style.width = `${(100 * done) / this.longest}%`;
    computed.style.background = css(this.page.palette.ofRequest(item.key));
    const output = item.num_tokens - item.num_prompt;
    const facts = [
      item.num_computed < item.num_prompt
        ? `prompt ${number(item.num_computed)} of ${number(item.num_prompt)}`
        : `prompt ${number(item.num_prompt)} · ${number(output)} out`,
      plural(item.num_blocks, "block"),
    ];
    if (item.preemptions) facts.push(`gave way ${item.preemptions}×`);
    setText(row.querySelector(".facts"), facts.join(" · "));
  }

  #updateHead(row, item) {
    row.key = item.key;
    const selected = this.page.selected() === item.key;
    row.setAttribute("aria-pressed", String(selected));
    row.querySelector(".swatch").style.background = css(this.page.palette.ofRequest(item.key));
    const name = row.querySelector(".name");
    setText(name, this.nameOf(item.key) + (item.index || this.several?.has(item.key) ? ` #${item.index}` : ""));
    name.title = this.page.names.get(item.key) ?? "";
    const tenant = row.querySelector(".tenant");
    setText(tenant, item.tenant);
    tenant.hidden = item.tenant === DEFAULT_TENANT; // most servers have no other
    setText(row.querySelector(".time"), duration(item.seconds));
  }

  // ── queue ──────────────────────────────────────────────────────────────────────────────────────────────────

  #makeWaiting() {
    return this.#makeRow(
      element("span", "swatch hollow"), element("span", "name"), element("span", "tenant"), element("span", "time"),
      element("span", "facts reason"), element("span", "facts"),
    );
  }

  #updateWaiting(row, item) {
    this.#updateHead(row, item);
    const who = item.behind ? this.nameOf(item.behind) : null;
    const [reason, facts] = row.querySelectorAll(".facts");
    setText(reason, waitReason(item, who));
    setText(facts, [plural(item.num_tokens, "token"), waitState(item)].filter(Boolean).join(" · "));
  }

  // ── preemptions ────────────────────────────────────────────────────────────────────────────────────────────

  #showPreemptions(now) {
    const past = [...this.#preemptions.values()].filter((row) => row.at <= now + 0.001).sort((a, b) => b.number - a.number);
    this.now = now;
    this.costliest = Math.max(1e-6, ...past.slice(0, 64).flatMap((row) => [row.predicted_swap ?? 0, row.predicted_recompute ?? 0, row.actual]));
    this.preempted.show(past.slice(0, 64), (row) => row.number);
    this.find("no-preemptions").hidden = past.length > 0;
    this.find("preemptions").parentElement.hidden = past.length === 0;
    const total = past.length ? past[0].number + 1 : 0;
    setText(this.find("preemptions-count"), total ? `${number(total)} since the engine's start · ▲ swapped · ● computed again` : "");
    this.#drawTimeline(past, now);
  }

  #makePreemption() {
    const cell = (...content) => element("td", "", ...content);
    const bar = () => cell(element("span", "cost"), element("span", "amount"));
    return element("tr", "", cell(), cell(element("span", "who")), cell(element("span", "who")), cell(), bar(), bar(), bar());
  }

  #updatePreemption(row, item) {
    const [when, victim, beneficiary, won, swap, recompute, actual] = row.cells;
    setText(when, `${duration(Math.max(0, this.now - item.at))} ago`);
    this.#who(victim.firstElementChild, item.victim, item.method === "swap" ? "▲" : "●");
    if (item.beneficiary) this.#who(beneficiary.firstElementChild, item.beneficiary, "■");
    else setText(beneficiary.firstElementChild, purpose(item));
    setText(won, `${plural(item.blocks, "block")}, ${plural(item.tokens, "token")}`);
    this.#cost(swap, item.predicted_swap, item.method === "swap");
    this.#cost(recompute, item.predicted_recompute, item.method === "recompute");
    this.#cost(actual, item.waited === null && !item.actual ? null : item.actual, true);
    actual.title = item.waited === null
      ? "it has not come back yet"
      : `came back after ${duration(item.waited)}; kept ${plural(item.kept_tokens, "token")}, computed ${number(item.recomputed_tokens)} again`;
    if (item.waited === null && !item.actual) setText(actual.lastElementChild, "still out");
  }

  #who(target, key, mark) {
    if (!target.firstElementChild) target.replaceChildren(element("span", "mark"), element("span"));
    const [sign, name] = target.children;
    setText(sign, mark);
    sign.style.color = css(this.page.palette.ofRequest(key));
    setText(name, this.nameOf(key));
    target.title = this.page.names.get(key) ?? "";
  }

  #cost(cell, seconds, chosen) {
    const [bar, amount] = cell.children;
    bar.style.width = `${(100 * (seconds ?? 0)) / this.costliest}%`;
    cell.classList.toggle("chosen", chosen);
    setText(amount, duration(seconds));
  }

  #drawTimeline(past, now) {
    const parent = this.find("timeline");
    parent.hidden = past.length === 0;
    let canvas = parent.firstElementChild;
    if (!canvas) canvas = parent.appendChild(element("canvas"));
    const { palette } = this.page, ratio = window.devicePixelRatio || 1;
    const width = parent.clientWidth, height = 44;
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = palette.muted;
    context.strokeStyle = palette.grid;
    const scale = (width - 12) / TIMELINE_SECONDS;
    for (let ago = 0; ago <= TIMELINE_SECONDS; ago += 15) {
      const x = width - 6 - ago * scale;
      context.beginPath();
      context.moveTo(x, 2);
      context.lineTo(x, 28);
      context.stroke();
      if (ago % 30 === 0) {
        context.textAlign = ago === 0 ? "right" : ago === TIMELINE_SECONDS ? "left" : "center";
        context.fillText(ago === 0 ? "now" : `−${ago} s`, ago === 0 ? width - 2 : x, 41);
      }
    }
    for (const row of past) {
      const ago = now - row.at;
      if (ago > TIMELINE_SECONDS) break;
      const x = width - 6 - ago * scale, size = 3 + Math.min(5, Math.sqrt(row.blocks) / 1.6);
      context.fillStyle = css(palette.ofRequest(row.victim));
      context.beginPath();
      if (row.method === "swap") {
        context.moveTo(x, 9 - size);
        context.lineTo(x + size, 9 + size);
        context.lineTo(x - size, 9 + size);
      } else {
        context.arc(x, 21, size * 0.85, 0, 2 * Math.PI);
      }
      context.fill();
    }
  }
}

function countOf(all, listed) {
  return listed < all ? `${number(all)}, the first ${listed}` : String(all);
}
