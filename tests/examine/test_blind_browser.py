"""People vote in a real browser, and what they save is counted."""

import asyncio

import pytest
from browser import CHROMIUM, open_tab
from examine.test_blind import NASTY, both, data_of

from potstill.examine.ballots import Pair
from potstill.examine.blind import blind_page, read_votes
from potstill.examine.preference import preference

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser here: install Debian's chromium"),
]


def opened(tmp_path, pairs, talk, **window):
    """Runs `talk(tab)` in a browser that shows the page of the pairs."""
    page = tmp_path / "blind.html"
    page.write_text(blind_page(pairs), encoding="utf-8")

    async def work():
        async with open_tab(tmp_path, **window) as tab:
            await tab.open(page.as_uri())
            result = await talk(tab)
            assert not tab.complaints
            return result

    return asyncio.run(work())


async def saved(tmp_path):
    for _ in range(200):
        found = list(tmp_path.glob("votes-*.json"))
        if found and not list(tmp_path.glob("*.crdownload")):
            return found[0]
        await asyncio.sleep(0.05)
    raise AssertionError("nothing was saved")


def test_votes_by_keyboard_survive_a_reload_and_are_scored_for_the_right_model(tmp_path):
    pairs = both(10)
    shown = data_of(blind_page(pairs))["pairs"]
    keys = ["1" if p["texts"][0].startswith("an ") else "2" for p in shown]

    async def talk(tab):
        await tab.press(*keys[:4])
        await tab.run("document.getElementById('voter').focus()")
        for letter in "Ann":
            await tab.press(letter)
        await tab.run("document.activeElement.blur()")
        await tab.run("location.reload()")
        await asyncio.sleep(0.5)
        assert await tab.run("document.getElementById('count').textContent") == (
            "pair 5 of 10, 4 voted"
        )
        await tab.press(*keys[4:8], "0", "b", "ArrowLeft")
        pressed = "document.querySelector('[aria-pressed=true]').dataset.choice"
        assert await tab.run(pressed) == "both_bad"
        await tab.press("s")
        return await saved(tmp_path)

    file = opened(tmp_path, pairs, talk)
    ballots, num_stale = read_votes([file], pairs)
    assert (len(ballots), num_stale) == (10, 0)
    found = preference("a", "b", pairs, ballots, by="people", signature="s", seed=0)
    assert found.voters == ("Ann",)
    assert found.counts["win"] == 8 and found.counts["tie"] == found.counts["both_bad"] == 1
    assert found.win_rate.value == pytest.approx(0.9)


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_fits_and_its_buttons_vote(tmp_path, width, scheme):
    long = "averyveryverylongwordthatcannotbebroken" * 9
    pairs = [Pair(p.a.model_copy(update={"text": p.a.text + long}), p.b) for p in both(3, b=NASTY)]

    async def talk(tab):
        assert await tab.run("document.documentElement.scrollWidth") == width
        colour = await tab.run("getComputedStyle(document.body).backgroundColor")
        assert (colour == "rgb(20, 23, 26)") == (scheme == "dark")
        texts = await tab.run(
            "[...document.querySelectorAll('.answers pre')].map(p=>p.textContent)"
        )
        assert any(text.startswith(NASTY) for text in texts)
        smallest = await tab.run(
            "Math.min(...[...document.querySelectorAll('nav [data-choice]')]"
            ".map(b => b.getBoundingClientRect().height))"
        )
        assert smallest >= 44
        for choice in ("left", "tie", "right"):
            await tab.run(f"document.querySelector('nav [data-choice={choice}]').click()")
        assert await tab.run("document.getElementById('end').hidden") is False
        await tab.run("document.querySelector('#end [data-save]').click()")
        return await saved(tmp_path)

    file = opened(tmp_path, pairs, talk, width=width, scheme=scheme)
    assert file.name.startswith("votes-unnamed-")
    ballots, _ = read_votes([file], pairs)
    assert len(ballots) == 3 and {b.voter for b in ballots} == {"voter 1"}
