"""Whatever is done to a registry, retention leaves what an alias, the chain or a pin needs."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import ManifestDraft, Registry, RegistryConfig, RegistryError, open_registry

DRAFT = ManifestDraft(strategy="head", rung="head", task="text", labels=["a"])
WHO = {"actor": "test", "reason": "drawn"}
WORK = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, 3)),
    st.tuples(
        st.sampled_from(["promote", "force", "challenge", "back", "back to", "pin", "collect"]),
        st.integers(0, 12),
    ),
)


def do(registry: Registry, work: str, number: int, source: Path) -> None:
    names = registry.names()
    chosen = names[number % len(names)] if names else "v0001"
    if work == "publish":
        (source / "weights").write_text(str(number))  # equal files are shared between versions
        registry.publish(source, DRAFT, actor="test")
    elif work in ("promote", "force"):
        registry.promote(chosen, force=work == "force", **WHO)
    elif work == "challenge":
        registry.set_challenger(chosen, **WHO)
    elif work == "back":
        registry.rollback(withdraw=bool(number % 2), **WHO)
    elif work == "back to":
        registry.rollback(to=chosen, **WHO)
    elif work == "pin":
        registry.pin(**WHO)
    else:
        registry.collect(actor="test")


@settings(max_examples=60, deadline=None)
@given(keep=st.integers(1, 3), history=st.integers(1, 3), works=st.lists(WORK, max_size=25))
def test_retention_leaves_what_is_needed(
    keep: int, history: int, works: list[tuple[str, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda fd: None)
        config = RegistryConfig(path=f"{folder}/registry", keep=keep, history=history)
        registry = open_registry(config, create=True)
        source = Path(folder, "source")
        source.mkdir()
        published: list[str] = []
        for work, number in [*works, ("collect", 0)]:
            before = set(registry.names())
            try:
                do(registry, work, number, source)
            except RegistryError:
                continue  # refused: nothing to go back to, pinned, withdrawn
            new = set(registry.names()) - before
            assert not new & set(published)
            published += new
            state = registry.state()
            for version in {state.champion, state.challenger, *state.chain} - {None}:
                registry.path(version)
            assert published[-keep:] == registry.names()[-len(published[-keep:]) :][-keep:]
        # And everything else is gone.
        state = registry.state()
        needed = {state.champion, state.challenger, *state.chain, *published[-keep:]} - {None}
        assert set(registry.names()) == needed
