// What the server tells, taken apart: tiers as typed arrays, rows as objects. Nothing here touches the page.

export const FREE = 0, CACHED = 1, USED = 2, PINNED = 3;
export const STATES = ["free", "cached", "used", "pinned"];
const MOST_NAMES = 16384;
export const NOBODY = 0, PIN = -1;

/** All cells of one tier. Cell i stands for the blocks 1 + i · perCell to (i + 1) · perCell. */
export class TierState {
  constructor(name, numBlocks, perCell) {
    this.name = name;
    this.numBlocks = numBlocks;
    this.perCell = perCell;
    this.size = Math.ceil(numBlocks / perCell);
    this.states = new Uint8Array(this.size);
    this.owners = new Int32Array(this.size);
    this.fills = new Uint8Array(this.size);
    this.counts = new Uint8Array(this.size);
  }

  /** Takes a change in; without cells it is of all. */
  apply(change) {
    const { cells } = change;
    if (cells === null) {
      for (const part of ["states", "owners", "fills", "counts"]) this[part].set(change[part]);
      return;
    }
    for (let i = 0; i < cells.length; i++) {
      const cell = cells[i];
      this.states[cell] = change.states[i];
      this.owners[cell] = change.owners[i];
      this.fills[cell] = change.fills[i];
      this.counts[cell] = change.counts[i];
    }
  }

  clone() {
    const copy = new TierState(this.name, this.numBlocks, this.perCell);
    copy.apply({ ...this, cells: null });
    return copy;
  }

  /** Whether cell i looks the same as in another state of the same tier. */
  same(other, i) {
    return this.states[i] === other.states[i] && this.owners[i] === other.owners[i] &&
      this.fills[i] === other.fills[i] && this.counts[i] === other.counts[i];
  }

  /** Blocks of a tier by state, as far as cells tell. */
  census() {
    const census = [0, 0, 0, 0];
    for (let i = 0; i < this.size; i++) census[this.states[i]]++;
    return census;
  }

  get bytes() {
    return this.size * 7;
  }

  static like(change) {
    const state = new TierState(change.name, change.numBlocks, change.perCell);
    state.apply(change);
    return state;
  }
}

/** Turns messages into frames; it remembers the names of columns and of requests. */
export class Decoder {
  #columns = null;
  names = new Map();

  /** A frame: {kind, status, engine, seconds, interval, steps, tiers, running, waiting, preemptions, totals, …}. */
  decode(message) {
    if (message.columns) this.#columns = message.columns;
    for (const [key, name] of Object.entries(message.names ?? {})) this.names.set(Number(key), name);
    for (const key of this.names.keys()) {
      if (this.names.size <= MOST_NAMES) break;
      this.names.delete(key); // the oldest
    }
    const rows = (name) => (message[name] ?? []).map((row) => asObject(this.#columns[name], row));
    const seconds = message.seconds;
    return {
      kind: message.kind,
      status: message.status,
      engine: message.engine,
      seconds,
      interval: message.interval ?? 0,
      steps: message.steps ?? 0,
      tiers: rows("tiers").map((row) => asChange(row, message.kind === "all")),
      running: rows("running"),
      numRunning: message.num_running ?? 0,
      waiting: rows("waiting"),
      numWaiting: message.num_waiting ?? 0,
      preemptions: rows("preemptions").map((row) => ({ ...row, at: seconds - row.ago })),
      totals: message.totals ?? null,
    };
  }
}

function asObject(columns, row) {
  return Object.fromEntries(columns.map((name, i) => [name, row[i]]));
}

function asChange(row, whole) {
  return {
    name: row.tier,
    numBlocks: row.num_blocks,
    perCell: row.blocks_per_cell,
    cells: whole ? null : int32(row.cells),
    states: bytes(row.states),
    owners: int32(row.owners),
    fills: bytes(row.fills),
    counts: bytes(row.counts),
  };
}

function bytes(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

function int32(text) {
  return new Int32Array(bytes(text).buffer);
}
