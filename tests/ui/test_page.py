"""What somebody sees who opens /ui."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from api_keys import ADA, ADMIN, some_keys
from live_engine import LiveEngine, preemption, running, waiting
from serving import serve
from tiny_models import make_tiny
from tiny_tokenizer import write_tokenizer

from octavo.engine.views import CACHED, PIN, PINNED, BlockOwner, BlockView
from octavo.server.keys import Keys

if TYPE_CHECKING:
    from playwright.sync_api import Page

SHARED = 3


@pytest.fixture
def painted(engine: LiveEngine) -> LiveEngine:
    """Two requests that share a block; a cached block, a pinned one, and one below."""
    engine.ids = {1: "request-one", 2: "request-two", 3: "request-three"}
    engine.paint("device", 0, owner=1, count=SHARED)
    engine.paint("device", 1, owner=1)
    engine.paint("device", 2, owner=2, fill=96)
    engine.paint("device", 3, state=CACHED, count=0)
    engine.paint("device", 4, state=PINNED, owner=PIN)
    engine.paint("host", 7, owner=3)
    engine.running = [running(1), running(2, num_computed=20, preemptions=1, tenant="ada")]
    engine.waiting = [waiting(3, state="swapped", behind=1, short=12)]
    engine.preemptions = [
        preemption(
            0, victim=3, beneficiary=1, method="swap", predicted_swap=0.0025, predicted_recompute=0.5, actual=0.004
        )
    ]
    return engine


def until(page: Page, condition: str, argument: Any = None, seconds: float = 30.0) -> None:
    """Waits for a condition. Playwright's own way to do so compiles text in the page, which its policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition, argument):
        assert time.monotonic() < deadline, f"it never came to {condition}"
        page.wait_for_timeout(10)


def opened(page: Page, url: str) -> Page:
    """The page, once it shows something."""
    page.goto(f"{url}/ui")
    until(page, "window.octavo && octavo.cell('device', 0)")
    return page


def cell(page: Page, tier: str, index: int) -> dict[str, Any]:
    """How a cell is drawn."""
    drawn: dict[str, Any] = page.evaluate("([tier, index]) => octavo.cell(tier, index)", [tier, index])
    return drawn


def wait_for_owner(page: Page, index: int, owner: int) -> None:
    until(page, "([index, owner]) => octavo.cell('device', index).owner === owner", [index, owner])


def pixel(page: Page, tier: str, index: int, across: float = 0.5, down: float = 0.5) -> list[int]:
    """The colour in a cell, at a share of its width and height."""
    return page.evaluate(  # type: ignore[no-any-return]
        """async ([tier, index, across, down]) => {
            await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            const canvas = document.querySelector(`[data-tier=${tier}] canvas`);
            const box = canvas.getBoundingClientRect(), place = octavo.place(tier, index);
            const ratio = canvas.width / box.width;
            const x = (place.left - box.left + across * (place.size - 2)) * ratio;
            const y = (place.top - box.top + down * (place.size - 2)) * ratio;
            return [...canvas.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3);
        }""",
        [tier, index, across, down],
    )


# ── what is shown ─────────────────────────────────────────────────────────────────────────────────────────────


def test_every_block_of_every_tier_is_a_cell(page: Page, url: str, painted: LiveEngine) -> None:
    opened(page, url)
    assert page.evaluate("octavo.tiers()") == {"device": 60, "host": 20}
    for name, tier in painted.tiers.items():
        for index in range(tier.size):
            drawn = cell(page, name, index)
            assert drawn["owner"] == tier.owners[index]
            assert drawn["state"] == ("free", "cached", "used", "pinned")[tier.states[index]]
            assert (drawn["fill"], drawn["count"]) == (tier.fills[index], tier.counts[index])
    assert cell(page, "device", 0)["request"] == "request-one"


def test_states_and_owners_look_different_and_blocks_fill_from_below(page: Page, url: str, painted: LiveEngine) -> None:
    opened(page, url)
    low = {index: tuple(pixel(page, "device", index, 0.15, 0.9)) for index in (1, 2, 3, 4, 5)}
    assert len(set(low.values())) == len(low)
    assert pixel(page, "device", 1, 0.15, 0.1) == list(low[1])  # full
    assert pixel(page, "device", 2, 0.15, 0.1) != list(low[2])  # 96 of 255 slots
    # A pin shows by its corner and sharing by its number as well, not by colour alone.
    assert pixel(page, "device", 4, 0.95, 0.05) != list(low[4])
    whole = page.evaluate(
        """() => {
            const canvas = document.querySelector('[data-tier=device] canvas'), size = octavo.place('device', 0).size;
            const inner = (size - 2) * canvas.width / canvas.getBoundingClientRect().width;
            const data = canvas.getContext('2d').getImageData(0, 0, inner, inner).data;
            return new Set(new Uint32Array(data.buffer)).size;
        }"""
    )
    assert whole > 2


def test_lists_say_who_runs_who_waits_and_why(page: Page, url: str, painted: LiveEngine) -> None:
    opened(page, url)
    page.wait_for_selector("#waiting .row")
    first, second = page.locator("#running .row").all_inner_texts()
    assert "request-one" in first
    assert "prompt 40 · 20 out" in first
    assert "prompt 20 of 40" in second
    assert "gave way 1×" in second
    assert "ada" in second
    (queued,) = page.locator("#waiting .row").all_inner_texts()
    assert "waits for blocks: 12 too few are free, behind request-one" in queued
    assert "80 tokens · swapped out" in queued
    (preempted,) = page.locator("#preemptions tr").all_inner_texts()
    assert "▲" in preempted
    for told in ("request-three", "request-one", "4 blocks, 60 tokens", "2.5 ms", "0.5 s", "4 ms"):
        assert told in preempted.replace("\n", " ")


def test_a_tooltip_tells_all_about_a_block(page: Page, url: str, painted: LiveEngine) -> None:
    owners = [BlockOwner(1, 0, "default", 0), BlockOwner(2, 1, "ada", 5)]
    painted.blocks["device", 1] = BlockView(0, "device", 1, "used", owners, 16, 16, "c0ffee", 0, 75.0, None, 2)
    opened(page, url)
    place = page.evaluate("octavo.place('device', 0)")
    page.mouse.move(place["left"] + 5, place["top"] + 5)
    page.wait_for_selector("#tooltip dl")
    told = page.inner_text("#tooltip")
    for text in ("device block 1", "16 of 16 slots", "request-one", "request-two", "sequence 1, its block 5", "ada",
                 "c0ffee", "it begins a prompt", "1:15 min", "2 times"):  # fmt: skip
        assert text in told
    page.mouse.move(5, 5)
    page.wait_for_selector("#tooltip", state="hidden")


def test_the_keyboard_gets_everywhere(page: Page, url: str, painted: LiveEngine) -> None:
    opened(page, url)
    page.focus("[data-tier=device] canvas")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "device block 2" in page.inner_text("#tooltip")
    page.keyboard.press("Enter")
    assert page.evaluate("octavo.selected()") == 1
    page.keyboard.press("Escape")
    assert page.evaluate("octavo.selected()") is None


def test_a_selected_requests_blocks_stand_out_in_every_tier(page: Page, url: str, painted: LiveEngine) -> None:
    painted.paint("host", 2, owner=1)
    both = [BlockOwner(1, 0, "default", 0), BlockOwner(2, 0, "default", 0)]
    painted.blocks["device", 1] = BlockView(0, "device", 1, "used", both, 16, 16, None, None, None, None, 0)
    opened(page, url)
    before = {place: cell(page, *place)["colour"] for place in (("device", 1), ("device", 2), ("host", 2), ("host", 7))}
    page.click("#running .row:nth-child(1)")
    dimmed = {place for place, colour in before.items() if cell(page, *place)["colour"] != colour}
    assert dimmed == {("device", 2), ("host", 7)}
    page.click("#running .row:nth-child(2)")
    # The map names one owner of a block; that a shared one is the second's, too, the engine was asked for.
    until(page, "(colour) => octavo.cell('device', 0).colour === colour", before["device", 1])
    assert cell(page, "device", 1)["colour"] != before["device", 1]


def test_names_are_text_whatever_they_are(page: Page, url: str, painted: LiveEngine) -> None:
    painted.ids[1] = "<img src=x onerror=alert(1)>"
    opened(page, url)
    page.wait_for_selector("#running .row")
    assert page.locator("#running img").count() == 0
    assert page.get_attribute("#running .row:nth-child(1) .name", "title") == painted.ids[1]


# ── as time goes on ───────────────────────────────────────────────────────────────────────────────────────────


def test_only_cells_that_have_changed_are_painted_again(page: Page, url: str, painted: LiveEngine) -> None:
    opened(page, url)
    until(page, "octavo.painted('device').total >= 60")
    before = page.evaluate("octavo.painted('device').total")
    for index in (10, 11, 12):
        painted.paint("device", index, owner=2)
    wait_for_owner(page, 12, 2)
    until(page, "(before) => octavo.painted('device').total > before", before)
    assert page.evaluate("octavo.painted('device').total") == before + 3
    assert page.evaluate("octavo.painted('host').total") == 20


def test_pause_and_replay(page: Page, url: str, painted: LiveEngine) -> None:
    opened(page, url)
    painted.paint("device", 1, owner=2)
    wait_for_owner(page, 1, 2)
    page.keyboard.press("Space")
    assert page.evaluate("octavo.mode()") == "paused"
    painted.paint("device", 1, owner=3)
    paused = page.evaluate("octavo.frames().last")
    until(page, "(paused) => octavo.frames().last > paused + 2", paused)
    assert cell(page, "device", 1)["owner"] == 2  # it goes on, and is not shown
    page.focus("#slider")
    page.keyboard.press("Home")
    assert page.evaluate("octavo.frames()")["shown"] == page.evaluate("octavo.frames().first")
    assert cell(page, "device", 1)["owner"] == 1
    owner = tuple(pixel(page, "device", 1))
    page.keyboard.press("End")
    assert cell(page, "device", 1)["owner"] == 3
    assert tuple(pixel(page, "device", 1)) != owner
    page.click("#live")
    assert page.evaluate("octavo.mode()") == "live"
    painted.paint("device", 1, owner=1)
    wait_for_owner(page, 1, 1)


def test_replay_goes_on_from_where_it_stands_and_becomes_live_at_its_end(
    page: Page, url: str, painted: LiveEngine
) -> None:
    opened(page, url)
    until(page, "octavo.frames().last >= 12")
    page.focus("#slider")
    page.keyboard.press("Home")
    page.click("#pause")
    assert page.evaluate("octavo.mode()") == "playing"
    until(page, "octavo.frames().shown > octavo.frames().first")
    page.focus("#slider")
    page.keyboard.press("End")
    page.click("#pause")
    until(page, "octavo.mode() === 'live'")


def test_the_engines_end_and_return_are_shown(page: Page, url: str, painted: LiveEngine) -> None:
    opened(page, url)
    painted.status = "restarting"
    page.wait_for_selector("#status[data-state=restarting]")
    painted.replace()
    painted.paint("device", 1, owner=2)
    painted.status = "ready"
    page.wait_for_selector("#status[data-state=ready]")
    wait_for_owner(page, 1, 2)


def test_a_hundred_thousand_blocks_are_painted_once_and_then_only_where_they_change(page: Page, url: str) -> None:
    page.goto(f"{url}/ui")
    counts = page.evaluate(
        """async () => {
            const [{ TierMap }, { Palette }, { LiveState, Recording }] = await Promise.all(
                ['tier_map', 'colours', 'recording'].map((name) => import(`/ui/${name}.js`)));
            const size = 100_000, canvas = document.createElement('canvas');
            document.body.append(canvas);
            const map = new TierMap(canvas, new Palette('dark'), 430);
            const live = new LiveState(), recording = new Recording();
            const frame = (number, kind, cells, count) => ({ kind, seconds: number / 4, running: [], tiers: [{
                name: 'device', numBlocks: size, perCell: 1, cells, states: new Uint8Array(count).fill(2),
                owners: new Int32Array(count).fill(number + 1), fills: new Uint8Array(count).fill(number),
                counts: new Uint8Array(count).fill(1) }] });
            const painted = [];
            for (let number = 0; number < 120; number++) {
                const cells = number ? Int32Array.from({ length: 200 }, (_, i) => (i * 499 + number * 7) % size) : null;
                const told = frame(number, number ? 'changes' : 'all', cells, number ? 200 : size);
                const changed = live.apply(told);
                recording.add(told, live.tiers);
                map.show(live.tiers.get('device'), changed.get('device'));
                painted.push(map.paint());
            }
            map.show(recording.at(60).tiers.get('device'), null);
            const back = map.paint(), then = recording.at(60).tiers.get('device').owners[420];
            map.show(live.tiers.get('device'), null);
            return { first: painted[0], later: [...new Set(painted.slice(1))], back, then, forth: map.paint(),
                     elements: document.querySelectorAll('*').length, keyframes: recording.keyframes };
        }"""
    )
    assert counts["first"] == 100_000
    assert counts["later"] == [200]
    # To and fro in the replay: what differs between the two times, which is not everything.
    assert 0 < counts["back"] <= 59 * 200
    assert counts["forth"] == counts["back"]
    assert counts["then"] == 61  # cell 420 changes in frame 60
    assert counts["keyframes"] == 3
    assert counts["elements"] < 300


def test_the_recording_is_bounded_in_time_and_in_bytes(page: Page, url: str) -> None:
    page.goto(f"{url}/ui")
    bounds = page.evaluate(
        """async () => {
            const { LiveState, Recording } = await import('/ui/recording.js');
            const run = (recording, frames) => {
                const live = new LiveState();
                for (let number = 0; number < frames; number++) {
                    const count = number ? 1 : 1000;
                    const told = { kind: number ? 'changes' : 'all', seconds: number, running: [], tiers: [{
                        name: 'device', numBlocks: 1000, perCell: 1, cells: number ? Int32Array.of(0) : null,
                        states: new Uint8Array(count), owners: new Int32Array(count).fill(number),
                        fills: new Uint8Array(count), counts: new Uint8Array(count) }] };
                    live.apply(told);
                    recording.add(told, live.tiers);
                }
                const { first, last, bytes } = recording;
                const owner = recording.at(first).tiers.get('device').owners[0];
                return { first, last, bytes, owner, before: recording.at(0).number };
            };
            return [run(new Recording({ seconds: 100, framesPerKey: 10 }), 500),
                    run(new Recording({ bytes: 200_000, framesPerKey: 10 }), 250)];
        }"""
    )
    for told, last in zip(bounds, (499, 249), strict=True):
        assert told["last"] == last
        assert told["owner"] == told["first"] == told["before"]
    assert 390 <= bounds[0]["first"] <= 400
    assert 100_000 < bounds[1]["bytes"] <= 200_000


# ── who may look ──────────────────────────────────────────────────────────────────────────────────────────────


class TestWithKeys:
    @pytest.fixture
    def keys(self) -> Keys:
        return some_keys()

    def test_the_page_asks_for_a_key_and_keeps_it_for_the_tab(self, page: Page, url: str, painted: LiveEngine) -> None:
        page.goto(f"{url}/ui")
        page.wait_for_selector("dialog[open]")
        assert page.evaluate("octavo.tiers()") == {}
        page.fill("#key-value", ADA)
        page.keyboard.press("Enter")
        until(page, "document.getElementById('key-reason').textContent.includes('admin')")
        page.wait_for_selector("dialog[open]")
        page.fill("#key-value", ADMIN)
        page.keyboard.press("Enter")
        until(page, "octavo.cell('device', 0)")
        page.reload()
        until(page, "window.octavo && octavo.cell('device', 0)")
        assert page.evaluate("localStorage.length") == 0
        assert page.context.cookies() == []


# ── a real engine ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_block_changes_its_owner_after_a_preemption(page: Page, tmp_path: Path) -> None:
    make_tiny(tmp_path, "Llama", vocab_size=400, max_position_embeddings=2048)
    write_tokenizer(tmp_path)
    # Three requests that need 33 blocks each in the end, and start with one: 40 are not enough for all.
    pool = "--num-blocks 40 --lookahead 0 --watermark-ratio 0 --max-num-seqs 3 --dtype float32 --device cpu"
    bodies = [{"prompt": [10 + i] * 12, "max_tokens": 500, "ignore_eos": True, "temperature": 0} for i in range(3)]
    with serve(str(tmp_path), *pool.split(), log=tmp_path / "log") as server, ThreadPoolExecutor(3) as threads:
        opened(page, server.url)
        answers = [
            threads.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=120) for body in bodies
        ]
        page.wait_for_selector("#preemptions tr", timeout=60_000)
        assert [answer.result().status_code for answer in answers] == [200, 200, 200]
        assert server.metric("octavo_preemptions_total") >= 1
        until(page, "document.querySelectorAll('#running .row').length === 0")
        victims = page.eval_on_selector_all("#preemptions tr", "(rows) => rows.map((row) => row.cells[1].innerText)")
        # Through the recording, as a visitor would go: who had each block, one after another.
        owners = page.evaluate(
            """() => {
                const slider = document.getElementById('slider'), { first, last } = octavo.frames(), seen = {};
                for (let number = first; number <= last; number++) {
                    slider.value = number;
                    slider.dispatchEvent(new Event('input'));
                    for (let index = 0; index < octavo.tiers().device; index++) {
                        const { state, owner, request, colour } = octavo.cell('device', index);
                        const before = seen[index] ??= [];
                        if (state === 'used' && before.at(-1)?.owner !== owner) before.push({ owner, request, colour });
                    }
                }
                return seen;
            }"""
        )
    # Some block was drawn for one that gave way, and next, in another colour, for somebody else.
    lost = [
        (before, after)
        for row in owners.values()
        for before, after in pairwise(row)
        if any(before["request"][-10:] in victim for victim in victims)
    ]
    assert lost, "no victim's block was ever drawn for another request"
    assert all(before["colour"] != after["colour"] for before, after in lost)
    assert all(seen["request"] for row in owners.values() for seen in row)
