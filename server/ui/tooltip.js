// What is known of the block under the pointer, or under the keyboard's mark.

import { css } from "./colours.js";
import { element } from "./lists.js";
import { PIN, STATES } from "./model.js";
import { duration, plural } from "./words.js";

const DEBOUNCE = 110; // milliseconds of rest before the engine is asked
const MOST_OWNERS = 8;

export class Tooltip {
  #timer = 0;
  #asked = null;

  /** page: {palette, names, connection, isLive()} */
  constructor(target, page) {
    this.target = target;
    this.page = page;
    this.at = null; // "tier/cell"
  }

  /** Shows what the map itself knows of a cell, and asks for the rest. */
  show(map, cell) {
    const at = `${map.state.name}/${cell}`;
    if (at === this.at) return;
    this.hide();
    this.at = at;
    this.target.replaceChildren(...this.#summary(map.state, cell));
    this.target.hidden = false;
    this.#place(map, cell);
    if (map.state.perCell === 1 && this.page.isLive()) {
      this.#timer = setTimeout(() => this.#ask(map, cell, at), DEBOUNCE);
    }
  }

  hide() {
    clearTimeout(this.#timer);
    this.#asked?.abort();
    this.at = null;
    this.target.hidden = true;
  }

  #summary(state, cell) {
    const first = 1 + cell * state.perCell, last = Math.min(state.numBlocks, first + state.perCell - 1);
    const owner = state.owners[cell], count = state.counts[cell];
    const which = first === last ? `block ${first.toLocaleString("en")}` : `blocks ${first.toLocaleString("en")} – ${last.toLocaleString("en")}`;
    const lines = [element("div", "which", `${state.name} ${which}`, " ", element("em", "", STATES[state.states[cell]]))];
    const fill = `${Math.round((100 * state.fills[cell]) / 255)} % filled${first === last ? "" : " on average"}`;
    lines.push(element("div", "fill", count > 1 ? `${fill} · ${count} owners` : fill));
    if (owner === PIN) lines.push(element("div", "", "held by a pin"));
    else if (owner > 0) lines.push(this.#owner(owner, "", ""));
    return lines;
  }

  #owner(key, sequence, tenant) {
    const swatch = element("span", "swatch");
    swatch.style.background = css(this.page.palette.ofRequest(key));
    const name = element("span", "id", this.page.names.get(key) ?? `request ${key}`);
    return element("div", "owner", swatch, name, element("span", "quiet", sequence, tenant));
  }

  async #ask(map, cell, at) {
    this.#asked = new AbortController();
    try {
      const response = await this.page.connection.fetch(`blocks/${map.state.name}/${cell + 1}`, { signal: this.#asked.signal });
      if (!response.ok || this.at !== at) return;
      const block = await response.json();
      if (this.at !== at) return;
      this.target.replaceChildren(...this.#details(block));
      this.#place(map, cell);
    } catch {
      // The summary stays: the pointer has moved on, or the server is away, which the status says.
    }
  }

  #details(block) {
    const lines = [
      element("div", "which", `${block.tier} block ${block.block.toLocaleString("en")}`, " ", element("em", "", block.state)),
      element("div", "fill", `${block.filled} of ${plural(block.size, "slot")} filled`),
    ];
    for (const owner of block.owners.slice(0, MOST_OWNERS)) {
      if (owner.key === 0) {
        lines.push(element("div", "", `pin ${owner.index} of ${owner.tenant}, its block ${owner.position}`));
        continue;
      }
      if (owner.request) this.page.names.set(owner.key, owner.request);
      lines.push(this.#owner(owner.key, `sequence ${owner.index}, its block ${owner.position}`, ` · ${owner.tenant}`));
    }
    const more = block.owners.length - MOST_OWNERS;
    if (more > 0) lines.push(element("div", "quiet", `and ${more} more`));
    const facts = [
      ["hash", block.hash ?? "not in the prefix cache"],
      ["parent", block.parent === null ? null : block.parent === 0 ? "none: it begins a prompt" : `block ${block.parent.toLocaleString("en")}`],
      ["age", block.age === null ? null : duration(block.age)],
      ["idle", block.idle === null ? null : duration(block.idle)],
      ["hits", plural(block.hits, "time") + " found in the prefix cache"],
    ].filter(([, text]) => text !== null);
    const list = element("dl");
    for (const [name, text] of facts) list.append(element("dt", "", name), element("dd", "", text));
    lines.push(list);
    return lines;
  }

  #place(map, cell) {
    const place = map.placeOf(cell), box = this.target.getBoundingClientRect();
    const right = place.left + place.size + 10, below = place.top + place.size + 10;
    const left = right + box.width > innerWidth - 8 ? Math.max(8, place.left - box.width - 10) : right;
    const top = below + box.height > innerHeight - 8 ? Math.max(8, place.top - box.height - 10) : below;
    this.target.style.left = `${left}px`;
    this.target.style.top = `${top}px`;
  }
}
