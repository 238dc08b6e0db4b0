"""Synthetic prompts: seeded, all different, of an exact length in tokens."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

from loadgen.client import RequestFailed, Target, fetch

TokenCounter = Callable[[str], Awaitable[int]]

MAX_CORRECTIONS = 16

# With a space before them, all of these are one token in the usual vocabularies, so the first guess is nearly right.
_LIST = """
able about above across after again against age air all almost along also always among animal another answer any area
around ask away back bad base beautiful became because become bed been before began behind being believe below best
better between big bird black blue board boat body book both box boy bring brought build built business but buy call
came car care carry case cause center certain chance change check child children city class clear close cold color come
common company complete contain control cook cool copy corner cost could country course cover create cross cut dark day
decide deep design develop did different direct distance do does dog done door down draw dream drive dry during each
early earth east eat edge effect eight either else end energy enough enter even evening ever every example eye face fact
fall family far farm fast father feel feet few field figure fill final find fine fire first fish five floor flow fly
follow food foot force forest form forward found four free fresh friend from front full game garden gave general get
girl give glass go gold gone good great green ground group grow had half hand happen hard has have head hear heart heat
heavy held help here high hill history hold home horse hot hour house how hundred idea important inside instead interest
iron island job join just keep key kind king knew know land language large last late laugh law lay lead learn least left
less letter level life light like line list listen little live local long look lost lot love low machine made main make
man many map mark market matter may mean measure meet men might mile milk mind minute money moon more morning most
mother mountain move much music must name near need never new next night nine north note nothing notice now number ocean
off office often oil old once one only open order other our out over own page paper part pass past path pattern people
perhaps person picture piece place plain plan plane plant play point poor power present press problem product public
pull put question quick quiet race rain ran reach read ready real reason record red remember rest result rich ride right
river road rock room round rule run safe said same saw say school sea season second see seed seem sense sent serve set
seven several shape ship short should show side sign simple since sing sister sit six size sky sleep slow small snow
some song soon sound south space speak special stand star start state stay step still stone stop story street strong
study such summer sun sure surface system table take talk teach team tell ten test than that the their them then there
these they thing think third this those though thought thousand three through time today together told took top town
travel tree true try turn two type under unit until use usual valley very voice wait walk wall want war warm was watch
water way weather week well went were west wheel when where which while white who whole why wide wild will wind window
winter wish with woman wonder wood word work world would write year yes yet young
"""
WORDS = _LIST.split()


class PromptMaker:
    """Makes texts from a seed; the same seed and labels give the same texts for every server.

    Args:
        seed: A number or a name; makers of different seeds have nothing in common.
        count: Counts a text's tokens as the model does, or None to take a word for a token.
    """

    def __init__(self, seed: int | str, count: TokenCounter | None) -> None:
        self._seed = seed
        self._count = count

    async def text(self, label: str, tokens: int, *, prefix: str = "") -> str:
        """A text that begins with a prefix and has a number of tokens beyond those of the prefix.

        Args:
            label: Texts of different labels have nothing in common after the prefix.
        """
        rng = self.rng(label)
        words = rng.choices(WORDS, k=tokens)
        goal = tokens + (await self._count(prefix) if self._count and prefix else 0)
        for _ in range(MAX_CORRECTIONS if self._count else 0):
            assert self._count is not None
            found = await self._count(_join(prefix, words))
            if found == goal:
                break
            # Where words take several tokens, as many words as there are excess tokens would be too many.
            change = max(1, round(abs(found - goal) * len(words) / max(1, found - goal + tokens)))
            words = words[:-change] if found > goal else [*words, *rng.choices(WORDS, k=change)]
        return _join(prefix, words)

    def rng(self, label: str) -> random.Random:
        """Randomness of its own for everything that has a label."""
        return random.Random(f"{self._seed}/{label}")


def _join(prefix: str, words: list[str]) -> str:
    return " ".join([prefix, *words] if prefix else words)


async def server_counter(target: Target) -> TokenCounter | None:
    """Counts by asking the server's ``/tokenize``; None if it has none."""

    async def count(text: str) -> int:
        answer = await fetch(target, "/tokenize", {"model": target.model, "prompt": text})
        return int(answer["count"])

    try:
        await count("one two three")
    except (RequestFailed, KeyError, TypeError, ValueError):
        return None
    return count


def folder_counter(model_folder: Path) -> TokenCounter:
    """Counts with the ``tokenizer.json`` of a model folder."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))

    async def count(text: str) -> int:
        return len(tokenizer.encode(text).ids)

    return count
