"""For every test: whatever it takes from a pool it gives back."""

import functools

import pytest

from lowlevel.pool import Pool


@pytest.fixture(autouse=True)
def no_leaked_blocks(monkeypatch):
    """Fails a test that leaves a block in a pool, even if the pool itself is gone by then."""
    live_of_pools = []
    init = Pool.__init__

    @functools.wraps(init)
    def recording_init(pool, *args, **kwargs):
        init(pool, *args, **kwargs)
        live_of_pools.append(pool._live)

    monkeypatch.setattr(Pool, "__init__", recording_init)
    yield
    leaked = [str(block) for live in live_of_pools for _, block, _ in live.values()]
    if leaked:
        pytest.fail("left in a pool:\n" + "\n".join(leaked[:10]), pytrace=False)
