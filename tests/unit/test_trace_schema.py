"""The published schema (lowlevel/inspect/trace_schema.json) against what is written: whole traces and snapshots fit it."""

import copy
import importlib.resources
import json
import random
import secrets

import pytest
from traces import HEADER, Lines, block, record

from lowlevel.inspect.reader import TraceFormatError, read_events

SCHEMA = json.loads(
    importlib.resources.files("lowlevel.inspect").joinpath("trace_schema.json").read_text()
)
TYPES = {"string": str, "array": list, "object": dict, "boolean": bool, "integer": int, "number": (int, float)}  # fmt: skip
KNOWN = {"$ref", "anyOf", "not", "enum", "const", "type", "minimum", "maximum", "items", "properties", "required"}  # fmt: skip


def fits(value, schema):
    """Whether a value is valid: as much of JSON Schema 2020-12 as ours uses."""
    assert set(schema) <= KNOWN | {"$schema", "$defs", "title", "description"}
    if "$ref" in schema:
        return fits(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in schema and not any(fits(value, one) for one in schema["anyOf"]):
        return False
    if "not" in schema and fits(value, schema["not"]):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "type" in schema:
        is_bool = isinstance(value, bool)
        if not isinstance(value, TYPES[schema["type"]]) or is_bool != (schema["type"] == "boolean"):
            return False
    if not schema.get("minimum", value) <= value <= schema.get("maximum", value) if isinstance(value, (int, float)) else False:  # fmt: skip
        return False
    if isinstance(value, list) and not all(fits(one, schema.get("items", {})) for one in value):
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        return set(schema.get("required", ())) <= set(value) and all(
            fits(value[key], what) for key, what in properties.items() if key in value
        )
    return True


def as_op(name):
    return SCHEMA["$defs"][name]


@pytest.fixture
def lines(tmp_path):
    seed = secrets.randbits(32)
    print("seed", seed)
    said = record(tmp_path / "t", random.Random(seed), debug=True, n_steps=400, budget="16KiB")
    assert fits(json.loads(json.dumps(said["snapshot"])), as_op("snapshot"))
    return [json.loads(line) for line in (tmp_path / "t").read_text().splitlines()]


def test_every_line_of_a_trace_is_of_its_kind(lines):
    header, *events = lines
    assert fits(header, as_op("header")) and fits(HEADER, as_op("header"))
    for event in events:
        assert fits(event, as_op(event["op"])) and fits(event, SCHEMA), event
        if event["op"] == "detach":
            assert fits(event["snapshot"], as_op("snapshot"))
    assert {event["op"] for event in events} >= {"attach", "alloc", "free", "refuse", "begin", "end", "detach", "stop"}  # fmt: skip


def test_rare_events():
    lines = Lines().add("reset_peak").add("resync", live=[block(1, 0, 256)])
    assert all(fits(line, as_op(line["op"])) for line in lines.lines[1:])
    assert fits({"t": 0, "op": "prefetch", "x": None}, SCHEMA)


def test_what_does_not_fit_is_refused_by_the_reader_too(lines, tmp_path):
    """And only that: the reader and the schema are of one mind about each field."""
    for event in {event["op"]: event for event in lines[1:]}.values():
        for key in event:
            for wrong in (None, -1, 1.5, "x", [], {}, True, 2**63, [-1], "drop"):
                changed = copy.deepcopy(event)
                changed[key] = wrong
                if wrong == "drop":
                    del changed[key]
                if key == "op" or (key == "t" and wrong == 2**63):
                    continue
                path = tmp_path / "changed"
                path.write_text(json.dumps(lines[0]) + "\n" + json.dumps(changed) + "\n")
                expected = fits(changed, as_op(event["op"]))
                try:
                    accepted = len(list(read_events(path))) == 1
                except TraceFormatError:
                    accepted = False
                assert accepted == expected, (key, wrong, event)
