// The page: what the stream says goes into the recording, and from there, now or later, onto the screen.

import { css, Palette, Slots } from "./colours.js";
import { Figures } from "./figures.js";
import { element, Lists } from "./lists.js";
import { CACHED, Decoder, FREE, PINNED, STATES, USED } from "./model.js";
import { LiveState, Recording } from "./recording.js";
import { Connection } from "./stream.js";
import { TierMap } from "./tier_map.js";
import { Tooltip } from "./tooltip.js";
import { duration, number, plural } from "./words.js";

const HEIGHTS = { device: 440, host: 170, disk: 170 };
const CAUGHT_UP_SECONDS = 1;
const REPLAY_SPEED = 1.25; // at exactly 1 it would never catch up
const MOST_SHARED = 128; // shared blocks that are looked into for a selected request

const find = (id) => document.getElementById(id);

class Page {
  decoder = new Decoder();
  live = new LiveState();
  recording = new Recording();
  connection = new Connection(import.meta.url);
  maps = new Map();
  mode = "live"; // or "paused", or "playing": an earlier time goes on
  shown = null; // {tiers, frame}
  number = 0; // of the frame that is shown, unless live
  #selected = null;
  #drawn = false;

  constructor() {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    this.slots = new Slots();
    this.palette = new Palette(dark.matches ? "dark" : "light", this.slots);
    this.figures = new Figures(find("figures"), this);
    this.lists = new Lists(this);
    this.tooltip = new Tooltip(find("tooltip"), this);
    dark.addEventListener("change", () => this.#setScheme(dark.matches ? "dark" : "light"));
    find("scheme").addEventListener("click", () => this.#setScheme(this.palette.name === "dark" ? "light" : "dark"));
    find("pause").addEventListener("click", () => this.toggle());
    find("live").addEventListener("click", () => this.goLive());
    find("slider").addEventListener("input", (event) => this.seek(Number(event.target.value)));
    document.addEventListener("keydown", (event) => this.#onKey(event));
    addEventListener("resize", () => this.#relayout());
    this.#setScheme(this.palette.name);
  }

  get names() { return this.decoder.names; }
  isLive() { return this.mode === "live"; }
  selected() { return this.#selected?.key ?? null; }

  // ── what comes in ──────────────────────────────────────────────────────────────────────────────────────────

  take(message) {
    const frame = this.decoder.decode(message);
    this.#showStatus(frame.status, frame.interval);
    if (frame.kind === "status") return;
    const changed = this.live.apply(frame);
    this.slots.keep([...frame.running, ...frame.waiting].map((row) => row.key));
    for (const row of [...frame.running, ...frame.waiting]) this.slots.of(row.key);
    this.recording.add(frame, this.live.tiers);
    this.lists.note(frame);
    this.figures.note(frame, this.live.tiers);
    if (this.mode === "live") this.#show(this.live.tiers, frame, changed);
    this.#showPosition();
  }

  #showStatus(word, interval = 0) {
    const status = find("status");
    status.dataset.state = word;
    const text = word === "ready" && interval > 1 ? `ready · looks every ${duration(interval)}` : word;
    if (status.textContent !== text) status.textContent = text;
    document.body.classList.toggle("stale", word !== "ready");
  }

  connectionState(state, text) {
    if (state === "connected") return;
    this.#showStatus(state === "lost" ? "connection lost" : "refused");
    find("status").title = text;
  }

  // ── what is shown ──────────────────────────────────────────────────────────────────────────────────────────

  #show(tiers, frame, changed) {
    this.shown = { tiers, frame };
    for (const [name, state] of tiers) {
      if (!this.maps.has(name)) this.#addMap(name);
      this.maps.get(name).show(state, changed?.get(name) ?? null);
    }
    for (const name of [...this.maps.keys()]) if (!tiers.has(name)) this.#removeMap(name);
    if (this.#drawn) return;
    // The rest at most once a frame of the screen.
    this.#drawn = true;
    requestAnimationFrame(() => { this.#drawn = false; this.#showRest(); });
  }

  #showRest() {
    if (this.shown === null) return;
    const { frame, tiers } = this.shown;
    this.lists.show(frame);
    this.figures.show(frame.seconds);
    for (const [name, state] of tiers) this.maps.get(name)?.describe(state);
  }

  #addMap(name) {
    const parent = find("tiers");
    parent.querySelector(".empty")?.remove();
    const canvas = element("canvas", "map");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    const facts = element("small");
    const box = element("div", "tier", element("h3", "", name, " ", facts), element("div", "cells", canvas));
    const after = [...parent.children].find((other) => order(other.dataset.tier) > order(name));
    box.dataset.tier = name;
    parent.insertBefore(box, after ?? null);
    const map = new TierMap(canvas, this.palette, HEIGHTS[name] ?? 170);
    map.box = box;
    map.selected = this.#selected;
    map.describe = (state) => {
      const text = describe(state);
      if (facts.textContent === text) return;
      facts.textContent = text;
      canvas.setAttribute("aria-label", `${name} blocks: ${text}. Arrow keys move over them, Enter selects the owner.`);
    };
    this.maps.set(name, map);
    this.#listen(map);
  }

  #removeMap(name) {
    this.maps.get(name).box.remove();
    this.maps.delete(name);
  }

  #relayout() {
    for (const map of this.maps.values()) map.layout();
    this.#showRest();
  }

  #setScheme(name) {
    this.palette = new Palette(name, this.slots);
    document.documentElement.style.colorScheme = name;
    find("scheme").textContent = name === "dark" ? "Light" : "Dark";
    for (const map of this.maps.values()) {
      map.palette = this.palette;
      map.repaint();
    }
    showLegend(new Palette(name));
    this.#showRest();
  }

  // ── pointing and selecting ─────────────────────────────────────────────────────────────────────────────────

  #listen(map) {
    const { canvas } = map;
    const point = (cell) => {
      map.point(cell);
      if (cell < 0) this.tooltip.hide(); else this.tooltip.show(map, cell);
    };
    canvas.addEventListener("pointermove", (event) => point(map.cellAt(event.clientX, event.clientY)));
    canvas.addEventListener("pointerleave", () => point(-1));
    canvas.addEventListener("blur", () => point(-1));
    const choose = (cell) => {
      const owner = cell < 0 ? 0 : map.state.owners[cell];
      this.select(owner > 0 ? owner : null);
    };
    canvas.addEventListener("click", (event) => choose(map.cellAt(event.clientX, event.clientY)));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -map.columns, ArrowDown: map.columns }[event.key];
      if (step !== undefined) {
        event.preventDefault();
        const next = map.cursor < 0 ? 0 : map.cursor + step;
        if (next >= 0 && next < map.state.size) point(next);
      } else if (event.key === "Enter") {
        choose(map.cursor);
      }
    });
  }

  /** Highlights a request's blocks in every tier; null, or the same again, shows all alike. */
  select(key) {
    this.#selected = key === null || key === this.selected() ? null : { key, extra: new Set() };
    for (const map of this.maps.values()) map.select(this.#selected);
    this.#showRest();
    if (this.#selected !== null && this.isLive()) this.#findShared(this.#selected);
  }

  /** The map tells one owner of a block; whether a shared one is the selected request's as well, the engine has to say. */
  async #findShared(selected) {
    const map = this.maps.get("device");
    if (!map || map.state.perCell > 1) return;
    const state = map.state;
    const shared = [];
    for (let i = 0; i < state.size && shared.length < MOST_SHARED; i++) {
      if (state.counts[i] > 1 && state.owners[i] !== selected.key) shared.push(i);
    }
    for (const cell of shared) {
      if (this.#selected !== selected) return;
      const response = await this.connection.fetch(`blocks/device/${cell + 1}`).catch(() => null);
      if (!response?.ok) return;
      if ((await response.json()).owners.some((owner) => owner.key === selected.key)) {
        selected.extra.add(`device/${cell}`);
        map.repaint();
      }
    }
  }

  // ── replay ─────────────────────────────────────────────────────────────────────────────────────────────────

  /** Pause, or go on from where it stands. */
  toggle() {
    if (this.recording.empty) return;
    if (this.mode === "paused") {
      this.#play();
    } else {
      if (this.mode === "live") this.number = this.recording.last;
      this.#setMode("paused");
      this.seek(this.number);
    }
  }

  goLive() {
    this.#setMode("live");
    const frame = this.recording.frame(this.recording.last);
    this.#show(this.live.tiers, frame, null);
    this.#showPosition();
  }

  /** Shows a frame of the recording. */
  seek(number) {
    if (this.recording.empty) return;
    if (this.mode !== "paused") this.#setMode("paused");
    this.#showFrame(number);
  }

  #showFrame(wanted) {
    const { tiers, frame, number } = this.recording.at(wanted);
    this.number = number;
    this.#show(tiers, frame, null);
    this.#showPosition();
  }

  #play() {
    this.#setMode("playing");
    const from = this.recording.frame(this.number).seconds, began = performance.now();
    const tick = () => {
      if (this.mode !== "playing") return;
      const now = from + (REPLAY_SPEED * (performance.now() - began)) / 1000;
      let next = this.number;
      while (next < this.recording.last && this.recording.frame(next + 1).seconds <= now) next++;
      // New frames go on coming: whoever is this close behind them has caught up.
      if (this.recording.frame(this.recording.last).seconds - now < CAUGHT_UP_SECONDS) {
        this.goLive();
        return;
      }
      if (next !== this.number) this.#showFrame(next);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  #setMode(mode) {
    this.mode = mode;
    find("pause-word").textContent = mode === "paused" ? "Play" : "Pause";
    find("pause").setAttribute("aria-pressed", String(mode === "paused"));
    find("live").disabled = mode === "live";
    document.body.classList.toggle("replay", mode !== "live");
    this.tooltip.hide();
  }

  #showPosition() {
    const slider = find("slider"), { first, last } = this.recording;
    slider.min = first;
    slider.max = last;
    const at = this.mode === "live" ? last : this.number;
    slider.value = at;
    const behind = this.recording.frame(last).seconds - this.recording.frame(at).seconds;
    const text = this.mode === "live" ? "live" : `−${duration(behind)}`;
    find("position").textContent = text;
    slider.setAttribute("aria-valuetext", this.mode === "live" ? "live" : `${duration(behind)} ago`);
  }

  #onKey(event) {
    if (event.target.closest?.("dialog, input[type=password]")) return;
    if (event.key === " " && !event.target.closest?.("button")) {
      event.preventDefault();
      this.toggle();
    } else if (event.key === "Escape") {
      this.select(null);
    }
  }
}

const ORDER = ["device", "host", "disk"];
function order(name) {
  return ORDER.indexOf(name);
}

function describe(state) {
  const census = state.census();
  const blocks = plural(state.numBlocks, "block");
  const each = state.perCell > 1 ? `, ${number(state.perCell)} to a cell` : "";
  const share = (count) => (state.perCell > 1 ? `${((100 * count) / state.size).toFixed(1)} %` : number(count));
  return [
    blocks + each, `${share(census[USED])} used`, census[PINNED] ? `${share(census[PINNED])} pinned` : "",
    `${share(census[CACHED])} cached`, `${share(census[FREE])} free`,
  ].filter(Boolean).join(" · ");
}

function showLegend(palette) {
  // Drawn by the map's own code: eight blocks that look as such blocks do.
  const examples = [
    ["free", FREE, 0, 255, 0], ["cached: no owner, still holds KV", CACHED, 0, 255, 0], ["a request's", USED, 1, 255, 1],
    ["another's, half filled", USED, 2, 128, 1], ["shared by 5", USED, 4, 255, 5], ["pinned", PINNED, -1, 255, 1],
    ["pinned and in use", PINNED, 3, 255, 2],
  ];
  find("legend").replaceChildren(...examples.map(([text, state, owner, fill, count]) => {
    const canvas = element("canvas");
    const holder = element("span", "sample", canvas);
    const map = new TierMap(canvas, palette, 22);
    const one = { name: "legend", size: 1, perCell: 1, numBlocks: 1, states: [state], owners: [owner], fills: [fill], counts: [count] };
    const item = element("li", "", holder, text);
    requestAnimationFrame(() => map.show(one, null));
    return item;
  }));
}

function needKey(reason) {
  const dialog = find("key");
  find("key-reason").textContent = reason;
  find("key-value").value = "";
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      if (find("key-value").value) page.connection.key = find("key-value").value;
      find("key-value").value = "";
      resolve();
    }, { once: true });
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    if (!dialog.open) dialog.showModal();
  });
}

const page = new Page();
page.connection.read({
  onMessage: (message) => page.take(message),
  onState: (state, text) => page.connectionState(state, text),
  needKey,
});

// For tests and for the curious: what is shown, to be looked at only.
window.octavo = Object.freeze({
  tiers: () => Object.fromEntries([...(page.shown?.tiers ?? [])].map(([name, state]) => [name, state.size])),
  cell: (tier, index) => {
    const state = page.shown?.tiers.get(tier);
    if (!state || !(index in state.states)) return null;
    const owner = state.owners[index];
    return {
      state: STATES[state.states[index]], owner, request: page.names.get(owner) ?? null, fill: state.fills[index],
      count: state.counts[index], colour: css(page.maps.get(tier).look(index).full),
    };
  },
  place: (tier, index) => ({ ...page.maps.get(tier).placeOf(index) }),
  painted: (tier) => {
    const map = page.maps.get(tier);
    return { last: map.drawnLast, total: map.drawnTotal, paintings: map.paintings };
  },
  mode: () => page.mode,
  selected: () => page.selected(),
  frames: () => ({ first: page.recording.first, last: page.recording.last, shown: page.mode === "live" ? page.recording.last : page.number }),
});
