// One tier as a canvas of cells. Only cells that have changed are painted again; there is no element per block.

import { css, mix, pixel } from "./colours.js";
import { CACHED, FREE, NOBODY, PIN, PINNED, TierState, USED } from "./model.js";

const LARGEST_CELL = 36, SMALLEST_CELL = 2; // CSS pixels, the gap included
const DRAWN_FROM = 6; // smaller cells are written as pixels
const COUNT_FROM = 13; // cells in which a number can be read
const EMPTY_SHARE = 0.72; // how far the unfilled part of a block is faded
const DIM_SHARE = 0.8; // how far cells are faded that are not of the selected request

/** The largest cells with which all of them fit into a box; at least SMALLEST_CELL, whatever height that takes. */
export function cellSize(count, width, height) {
  for (let size = LARGEST_CELL; size > SMALLEST_CELL; size--) {
    if (Math.ceil(count / Math.max(1, Math.floor(width / size))) * size <= height) return size;
  }
  return SMALLEST_CELL;
}

export class TierMap {
  #shown = null; // what the canvas shows, as a TierState; null: nothing of it is right
  #dirty = new Set();
  #compare = false;
  #scheduled = false;
  #image = null;

  /** height: CSS pixels that it would like to keep within. onPaint: called after each painting. */
  constructor(canvas, palette, height) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.palette = palette;
    this.height = height;
    this.state = null;
    this.selected = null; // {key, extra: Set of cells that are shared with others}
    this.cursor = -1;
    this.drawnLast = 0; // cells that the latest painting painted
    this.drawnTotal = 0;
    this.paintings = 0;
  }

  /** Shows a state. changed: its cells that differ from what was shown last; null if that is not known. */
  show(state, changed) {
    const known = this.#shown !== null && this.#shown.size === state.size && this.#shown.perCell === state.perCell;
    const other = state !== this.state;
    this.state = state;
    if (!known) this.#shown = null, this.layout();
    else if (changed === null || other) this.#compare = true;
    else for (const cell of changed) this.#dirty.add(cell);
    this.#schedule();
  }

  /** Fits the cells into the width that there is, and paints all of them. */
  layout() {
    if (this.state === null) return;
    const width = Math.max(40, Math.floor(this.canvas.parentElement.clientWidth));
    const ratio = Math.max(1, Math.min(3, window.devicePixelRatio || 1));
    this.size = cellSize(this.state.size, width, this.height);
    this.columns = Math.min(this.state.size, Math.floor(width / this.size));
    this.pitch = Math.max(1, Math.round(this.size * ratio));
    this.gap = this.pitch >= 12 ? 2 : this.pitch >= 4 ? 1 : 0;
    this.rows = Math.ceil(this.state.size / this.columns);
    this.canvas.width = this.columns * this.pitch;
    this.canvas.height = this.rows * this.pitch;
    this.canvas.style.width = `${this.canvas.width / ratio}px`;
    this.canvas.style.height = `${this.canvas.height / ratio}px`;
    this.ratio = ratio;
    this.#image = this.pitch < DRAWN_FROM ? this.context.createImageData(this.canvas.width, this.canvas.height) : null;
    this.#pixels = this.#image ? new Uint32Array(this.#image.data.buffer) : null;
    this.repaint();
  }

  #pixels = null;

  /** Paints everything again: another scheme, another selection. */
  repaint() {
    this.#shown = null;
    this.#schedule();
  }

  select(selected) {
    this.selected = selected;
    this.repaint();
  }

  /** Moves the keyboard's and the pointer's mark; -1 takes it away. */
  point(cell) {
    if (cell === this.cursor) return;
    for (const moved of [this.cursor, cell]) if (moved >= 0) this.#dirty.add(moved);
    this.cursor = cell;
    this.#schedule();
  }

  /** The cell at a place in the page; -1 where there is none. */
  cellAt(clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor(((clientX - box.left) * this.ratio) / this.pitch);
    const row = Math.floor(((clientY - box.top) * this.ratio) / this.pitch);
    const cell = row * this.columns + column;
    return column >= 0 && column < this.columns && row >= 0 && this.state && cell < this.state.size ? cell : -1;
  }

  /** Where a cell is in the page: {left, top, size} in CSS pixels. */
  placeOf(cell) {
    const box = this.canvas.getBoundingClientRect(), size = this.pitch / this.ratio;
    return { left: box.left + (cell % this.columns) * size, top: box.top + Math.floor(cell / this.columns) * size, size };
  }

  #schedule() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => { this.#scheduled = false; this.paint(); });
  }

  /** Paints what has changed, at once; returns how many cells that were. */
  paint() {
    const { state } = this;
    if (state === null || !this.columns) return 0;
    let cells;
    if (this.#shown === null) {
      this.context.fillStyle = css(this.palette.paper);
      this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
      if (this.#pixels) this.#pixels.fill(pixel(this.palette.paper));
      this.#shown = new TierState(state.name, state.numBlocks, state.perCell);
      cells = Array.from({ length: state.size }, (_, i) => i);
    } else {
      if (this.#compare) {
        for (let i = 0; i < state.size; i++) if (!state.same(this.#shown, i)) this.#dirty.add(i);
      }
      cells = [...this.#dirty];
    }
    this.#dirty.clear();
    this.#compare = false;
    if (this.#pixels) this.#paintPixels(cells); else for (const cell of cells) this.#paintCell(cell);
    for (const cell of cells) this.#remember(cell);
    this.drawnLast = cells.length;
    this.drawnTotal += cells.length;
    this.paintings += 1;
    return cells.length;
  }

  #remember(cell) {
    const shown = this.#shown, state = this.state;
    shown.states[cell] = state.states[cell];
    shown.owners[cell] = state.owners[cell];
    shown.fills[cell] = state.fills[cell];
    shown.counts[cell] = state.counts[cell];
  }

  /** How a cell looks: {full, rest: colours of its filled and its empty part, fill: share, shared, pinned, hatched}. */
  look(cell) {
    const { palette, state } = this;
    const kind = state.states[cell], owner = state.owners[cell];
    const fill = state.fills[cell] / 255;
    let full = palette.free;
    if (kind === CACHED) full = palette.cached;
    else if (kind === USED || kind === PINNED) full = owner === PIN || owner === NOBODY ? palette.pin : palette.ofRequest(owner);
    let rest = kind === FREE ? full : mix(full, palette.paper, EMPTY_SHARE);
    if (this.selected !== null && !this.#isSelected(cell)) {
      full = mix(full, palette.paper, DIM_SHARE);
      rest = mix(rest, palette.paper, DIM_SHARE);
    }
    return { full, rest, fill: kind === FREE ? 1 : fill, shared: state.counts[cell], pinned: kind === PINNED, hatched: kind === CACHED };
  }

  #isSelected(cell) {
    return this.state.owners[cell] === this.selected.key || this.selected.extra.has(`${this.state.name}/${cell}`);
  }

  // ── cells of two to five pixels ────────────────────────────────────────────────────────────────────────────

  #paintPixels(cells) {
    const { pitch, gap, columns } = this, width = this.canvas.width, pixels = this.#pixels;
    const inner = pitch - gap, mark = pixel(this.palette.mark), paper = pixel(this.palette.paper);
    let top = this.canvas.height, bottom = 0;
    for (const cell of cells) {
      const look = this.look(cell), full = pixel(look.full), rest = pixel(look.rest);
      const y = Math.floor(cell / columns) * pitch, start = y * width + (cell % columns) * pitch;
      const empty = Math.round((1 - look.fill) * inner);
      for (let row = 0; row < pitch; row++) {
        const inside = row < inner, colour = row < empty ? rest : full;
        for (let column = 0; column < pitch; column++) {
          const hatch = look.hatched && inner >= 3 && (row + column) % 3 === 0;
          pixels[start + row * width + column] = !inside || column >= inner ? paper : hatch ? rest : colour;
        }
      }
      if (look.shared > 1 || look.pinned) pixels[start + (look.pinned ? inner - 1 : 0)] = mark;
      if (cell === this.cursor) for (let i = 0; i < inner; i++) pixels[start + i] = pixels[start + i * width] = mark;
      top = Math.min(top, y);
      bottom = Math.max(bottom, y + pitch);
    }
    if (bottom > top) this.context.putImageData(this.#image, 0, 0, 0, top, width, bottom - top);
  }

  // ── larger cells ───────────────────────────────────────────────────────────────────────────────────────────

  #paintCell(cell) {
    const { context, pitch, gap, palette } = this;
    const x = (cell % this.columns) * pitch, y = Math.floor(cell / this.columns) * pitch, inner = pitch - gap;
    const look = this.look(cell), dim = this.selected !== null && !this.#isSelected(cell);
    const empty = Math.round((1 - look.fill) * inner);
    context.fillStyle = css(palette.paper);
    context.fillRect(x, y, pitch, pitch);
    context.fillStyle = css(look.rest);
    context.fillRect(x, y, inner, empty);
    context.fillStyle = css(look.full);
    context.fillRect(x, y + empty, inner, inner - empty);
    if (look.hatched) this.#hatch(x, y + empty, inner, inner - empty, dim);
    const mark = css(dim ? mix(palette.mark, palette.paper, DIM_SHARE) : palette.mark);
    if (look.pinned) this.#corner(x + inner, y, Math.max(3, Math.round(inner * 0.42)), mark);
    if (look.shared > 1) this.#share(x, y, inner, look, dim);
    if (this.selected !== null && !dim) this.#frame(x, y, inner, mark, 1);
    if (cell === this.cursor) this.#frame(x, y, inner, css(palette.mark), Math.max(1, Math.round(this.ratio * 1.5)));
  }

  #hatch(x, y, width, height, dim) {
    const { context, palette } = this;
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    context.strokeStyle = css(dim ? mix(palette.hatch, palette.paper, DIM_SHARE) : palette.hatch);
    context.lineWidth = Math.max(1, width / 9);
    context.beginPath();
    for (let at = -height; at < width; at += Math.max(3, width / 3)) {
      context.moveTo(x + at, y + height);
      context.lineTo(x + at + height, y);
    }
    context.stroke();
    context.restore();
  }

  #corner(right, top, size, colour) {
    const { context } = this;
    context.fillStyle = colour;
    context.beginPath();
    context.moveTo(right - size, top);
    context.lineTo(right, top);
    context.lineTo(right, top + size);
    context.fill();
  }

  #share(x, y, inner, look, dim) {
    const { context, palette } = this;
    if (inner < COUNT_FROM * this.ratio * 0.85) {
      const dot = Math.max(2, Math.round(inner / 3.5));
      context.fillStyle = css(dim ? mix(palette.mark, palette.paper, DIM_SHARE) : palette.mark);
      context.fillRect(x + 1, y + 1, dot, dot);
      return;
    }
    context.fillStyle = css(look.fill > 0.5 ? palette.paper : palette.mark);
    context.font = `700 ${Math.round(inner * (look.shared > 99 ? 0.42 : 0.56))}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(look.shared === 255 ? "255+" : String(look.shared), x + inner / 2, y + inner / 2 + inner * 0.05);
  }

  #frame(x, y, inner, colour, width) {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.strokeRect(x + width / 2, y + width / 2, inner - width, inner - width);
  }
}
