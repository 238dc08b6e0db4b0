"""Takes the pictures in docs/images of the live map, under a real load.

    python benchmarks/screenshots.py --to docs/images        # some minutes; needs chromium and playwright

A server with the default model, a pool that is too small and a swap tier; 16 conversations that share a system prompt,
and answers of different lengths. The pictures are taken once requests have given way to each other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
from loadgen.peers import Peer, known_peers, running
from playwright.async_api import Browser, Page, async_playwright

from octavo.config import EngineConfig
from octavo.engine.prepare import prepare_model

SESSIONS = 16
OPTIONS = ["--num-blocks", "130", "--swap-space", "48MiB", "--lookahead", "0", "--max-num-seqs", "12"]
SYSTEM = "You are a careful librarian who answers in full sentences and names the shelf. " * 8
TOPICS = ("binding", "paper", "ink", "folios", "maps", "vellum", "printers", "watermarks", "catalogues", "indexes")
SIZE = {"width": 1480, "height": 960}
PREEMPTIONS = 6
PATIENCE = 400.0  # seconds until that many, on a busy machine


def peer() -> Peer:
    """Octavo, set so that requests have to give way."""
    octavo = known_peers(prepare_model(EngineConfig()).folder, None, 1)["octavo"]
    command = list(octavo.command)
    at = command.index("--kv-cache-memory")
    return replace(octavo, command=[*command[:at], *command[at + 2 :], *OPTIONS])


async def converse(http: httpx.AsyncClient, model: str, number: int) -> None:
    """One conversation after another, until it is cancelled."""
    chance = random.Random(number)
    while True:
        messages = [{"role": "system", "content": SYSTEM}]
        for _ in range(chance.randint(1, 3)):
            question = f"Session {number}: tell me about {chance.choice(TOPICS)} and {chance.choice(TOPICS)}. "
            messages.append({"role": "user", "content": question * chance.randint(1, 5)})
            body = {"model": model, "messages": messages, "max_tokens": chance.randint(60, 260), "temperature": 0.7}
            answer = await http.post("/chat/completions", json=body)
            if answer.status_code != 200:  # a busy machine may have kept the engine silent for a second
                await asyncio.sleep(1.0)
                break
            messages.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})


@contextlib.asynccontextmanager
async def load(url: str, model: str) -> AsyncIterator[None]:
    """All conversations, for the length of a with-block."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        tasks = [asyncio.create_task(converse(http, model, number)) for number in range(SESSIONS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def tab(browser: Browser, url: str, scheme: str) -> Page:
    """The map in a new tab."""
    page = await browser.new_page(viewport=SIZE, color_scheme=scheme)
    await page.goto(url.removesuffix("/v1") + "/ui")
    return page


async def take(browser: Browser, url: str, folder: Path) -> None:
    """All pictures, once there is enough to see."""
    dark = await tab(browser, url, "dark")
    async with asyncio.timeout(PATIENCE):
        while await dark.locator("#preemptions tr").count() < PREEMPTIONS:
            await dark.wait_for_timeout(500)
    await dark.screenshot(path=folder / "ui-overview.png")
    await dark.click("#running .row:nth-child(4)")
    await dark.wait_for_timeout(1500)  # the engine is asked about shared blocks
    place = await dark.evaluate("octavo.place('device', 2)")
    await dark.mouse.move(place["left"] + 8, place["top"] + 8)
    await dark.wait_for_selector("#tooltip dl")
    await dark.screenshot(path=folder / "ui-request.png")
    await dark.keyboard.press("Escape")
    await dark.mouse.move(2, 2)
    await dark.focus("#slider")
    first, last = await dark.evaluate("[octavo.frames().first, octavo.frames().last]")
    for _ in range((last - first) // 3):
        await dark.keyboard.press("ArrowLeft")
    await dark.wait_for_timeout(300)
    await dark.click("#scheme")
    await dark.wait_for_timeout(300)
    await dark.screenshot(path=folder / "ui-replay.png")


async def run(folder: Path, chromium: str) -> None:
    """Starts everything and takes the pictures."""
    async with running(peer(), start_timeout=600, request_timeout=600) as server, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        async with load(server.target.base_url, server.target.model):
            await take(browser, server.target.base_url, folder)
        await browser.close()


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="path of the browser")
    options = parser.parse_args()
    if options.chromium is None:
        parser.error("there is no chromium; --chromium names one")
    options.to.mkdir(parents=True, exist_ok=True)
    asyncio.run(run(options.to, options.chromium))
    return 0


if __name__ == "__main__":
    sys.exit(main())
