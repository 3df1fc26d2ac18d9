"""Traces for tests: recorded from a real pool, or put together line by line."""

import json

from lowlevel.pool import BudgetError, Pool
from lowlevel.pool.trace import Trace

HEADER = {
    "format": "kqcap trace",
    "version": 1,
    "pid": 1,
    "program": "test",
    "started": 1_700_000_000.0,
}


def record(path, rng, n_steps=200, budget="64KiB", debug=False):
    """A pool that is used at random, some calls planned to the byte.

    Returns
    -------
    dict
        peak, n_taken, n_refused and snapshot (at the end, some blocks still live), as the pool itself says.
    """
    counts = {"peak": 0, "n_taken": 0, "n_refused": 0}
    with Pool(budget, debug=debug) as pool:
        early = [pool.empty(rng.randrange(2000), "uint8", tag="early") for _ in range(3)]
        arrays = []
        with Trace(path) as trace:
            trace.attach(pool)
            for i in range(n_steps):
                kind = rng.random()
                if kind < 0.4 and arrays:
                    pool.free(arrays.pop(rng.randrange(len(arrays))))
                elif kind < 0.9:
                    try:
                        arrays.append(
                            pool.empty(rng.randrange(4000), "uint8", tag=rng.choice("abc"))
                        )
                        counts["n_taken"] += 1
                    except BudgetError:
                        counts["n_refused"] += 1
                elif pool.largest_free >= 1024:
                    with (
                        pool.call("attention", n_kv=i, scratch_bytes=1024),
                        pool.scope("layer 0/x"),
                    ):
                        pool.empty((10, 6), "float32", tag="kq")
                        pool.empty(768, "uint8", tag='v "\u2028<b>')
                        counts["n_taken"] += 2
                        counts["peak"] = max(counts["peak"], pool.used)
                counts["peak"] = max(counts["peak"], pool.used)
            counts["snapshot"] = pool.snapshot()
            trace.detach(pool)
            for array in arrays + early:
                pool.free(array)
    return counts


class Lines:
    """A trace written by hand: one pool, events in order, `used` kept by itself unless given."""

    def __init__(self, budget=65536, used=0, **header):
        self.used = used
        self.t = 0.0
        self.lines = [{**HEADER, **header}]
        self.add("attach", device="cpu", budget=budget, peak=used, debug=False)

    def add(self, op, **fields):
        self.t = round(self.t + 0.001, 6)
        self.lines.append({"t": self.t, "op": op, "pool": 1, "used": self.used, **fields})
        return self

    def alloc(self, n, offset, size, tag="a", **fields):
        self.used += size
        more = dict(scope="", thread="main", dtype="uint8", shape=[size], site="")
        return self.add(
            "alloc", **{"n": n, "offset": offset, "size": size, "tag": tag, **more, **fields}
        )

    def free(self, n, offset, size, tag="a", **fields):
        self.used -= size
        return self.add("free", **{"n": n, "offset": offset, "size": size, "tag": tag, **fields})

    def write(self, path):
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        return path


def block(n, offset, size, tag="a"):
    """A block as "resync" and snapshots list it."""
    return dict(
        offset=offset, n_bytes=size, number=n, shape=[size], dtype="uint8", tag=tag, scope="",
        thread="main", site="",
    )  # fmt: skip


HOSTILE = [
    b"-1", b"1e400", b"NaN", b"null", b"true", b"9" * 30, b"9" * 5000, b'""', b"[]", b"{}", b"0.5",
    b"9223372036854775807", b"9223372036854775808", b"4611686018427387904", b"256", b"0", b"65536",
    b'"../../../../etc/passwd"', b'"/tmp/x"', b'"\\ud800"', b'"\\u001b[2J"', b'"</script>"', b'"%s{}"',
    b"[" * 3000, b'{"a":' * 3000,
]  # fmt: skip
KEYS = [b'"op"', b'"t"', b'"used"', b'"n"', b'"offset"', b'"size"', b'"tag"', b'"pool"', b'"version"', b'"budget"', b'"live"']  # fmt: skip


def mutant(rng, good):
    """A trace with something wrong, more often where it is understood than where it is not."""
    lines = good.splitlines(keepends=True)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        kind = rng.randrange(9)
        at = rng.randrange(len(lines))
        line = lines[at] or b"\n"
        if kind == 0:  # a byte
            where = rng.randrange(len(line))
            lines[at] = line[:where] + bytes([rng.randrange(256)]) + line[where + 1 :]
        elif kind == 1:  # cut off
            lines = lines[:at] + [line[: rng.randrange(len(line))]]
        elif kind == 2:  # lines left out, said twice, swapped
            del lines[at : at + rng.randrange(1, 3)]
        elif kind == 3:
            lines.insert(rng.randrange(len(lines)), line)
        elif kind == 4:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], line
        elif kind == 5:  # a key's value
            key = rng.choice(KEYS)
            start = line.find(key + b":")
            if start >= 0:
                start += len(key) + 1
                end = min(
                    (e for e in (line.find(c, start) for c in (b",", b"}")) if e > 0), default=start
                )
                lines[at] = line[:start] + rng.choice(HOSTILE) + line[end:]
        elif kind == 6:  # any bytes in the middle
            where = rng.randrange(len(line))
            lines[at] = line[:where] + rng.choice(HOSTILE) + line[where:]
        elif kind == 7:  # a number a little off
            digits = [i for i in range(len(line)) if line[i : i + 1].isdigit()]
            if digits:
                where = rng.choice(digits)
                lines[at] = line[:where] + b"%d" % rng.randrange(10) + line[where + 1 :]
        else:
            lines[at] = rng.choice(
                [b"", b"\n", b"{}\n", b"\x00\n", b'{"t":0,"op":"stop","n_events":0}\n']
            )
        if not lines:
            break
    return b"".join(lines)
