"""FORMAT.md says what the layout module does: every structure, every number, every magic word and name."""

from __future__ import annotations

import importlib
import pkgutil
import re
import struct
from collections.abc import Iterator

import pytest
from documents import ROOT, Table, in_backticks, tables

import cow.disk
from cow.disk import layout, seal
from cow.disk.layout import Counter, CutCounter, Durability, Number, Owner, Protect, RecordFlag, State, Trait

TEXT = (ROOT / "cow" / "FORMAT.md").read_text()
TABLES = tables(TEXT)
STRUCTS = {name: value for name, value in vars(layout).items() if isinstance(value, struct.Struct)}
TYPES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "bytes": "s", "–": "x"}
OWNERS = {
    "L": Owner.LIVE,
    "C": Owner.COMPACTOR,
    "S": Owner.SNAPSHOT,
    "M": Owner.MOUNT,
    "C; L with `power`": Owner.APPENDER,
}
TRAITS = {"sealed": Trait.SEALED, "counted": Trait.RECOUNTED, "passing": Trait.PASSING}

# Offset, size and type of a field.
Field = tuple[int, int, str]


def fields_of(form: struct.Struct) -> list[Field]:
    """What the struct is made of; bytes that mean nothing are one field."""
    fields: list[Field] = []
    offset = 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", form.format):
        sizes = [int(count or 1)] if code in "sx" else [struct.calcsize(f"<{code}")] * int(count or 1)
        for size in sizes:
            if code == "x" and fields and fields[-1][2] == "x":
                first, before, _ = fields.pop()
                fields.append((first, before + size, code))
            else:
                fields.append((offset, size, code))
            offset += size
    return fields


def fields_in(table: Table) -> list[Field]:
    """Those rows whose place and size are numbers."""
    return [
        (int(offset), int(size), TYPES[kind])
        for offset, size, kind, _ in table.rows
        if offset.isdecimal() and size.isdecimal()
    ]


STRUCT_TABLES = [table for table in TABLES if table.columns[:3] == ("offset", "size", "type")]


@pytest.mark.parametrize("table", STRUCT_TABLES, ids=lambda table: f"{table.section}: {table.lead[:30]}")
def test_a_table_of_fields_is_a_struct(table: Table) -> None:
    matching = [form for form in STRUCTS.values() if fields_of(form) == fields_in(table)]
    assert len(matching) == 1
    after = [row for row in table.rows if row[0].isdecimal() and not row[1].isdecimal()]
    assert [int(row[0]) for row in after] == [matching[0].size] * len(after)


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_is_in_a_table(name: str) -> None:
    """As the whole of it, as what it begins with, or as the checksum at its end."""
    fields = fields_of(STRUCTS[name])
    begins = any(fields_in(table)[: len(fields)] == fields for table in STRUCT_TABLES)
    ends = any(
        (kind, size) == ("u64", "8") and text.startswith("XXH3-64")
        for t in STRUCT_TABLES
        for _, size, kind, text in t.rows
    )
    assert begins or (ends and [code for _, _, code in fields] == ["Q"])


# --- numbers -------------------------------------------------------------------------------------------------


def number_rows(lead: str) -> dict[int, tuple[Owner, frozenset[Trait]]]:
    (table,) = (table for table in TABLES if table.columns[:2] == ("index", "by") and table.lead == lead)
    rows: dict[int, tuple[Owner, frozenset[Trait]]] = {}
    for places, owner, traits, _ in table.rows:
        facts = OWNERS[owner], frozenset(TRAITS[trait] for trait in re.findall(r"\w+", traits))
        for place in places_of(places):
            assert place not in rows
            rows[place] = facts
    return rows


def places_of(text: str) -> Iterator[int]:
    """`4, 5` and `9–12`."""
    for part in text.split(","):
        first, _, last = part.partition("–")
        yield from range(int(first), int(last or first) + 1)


@pytest.mark.parametrize(("lead", "page"), [("`control`:", Counter), ("`numbers`:", CutCounter)])
def test_the_tables_of_numbers_are_those_of_the_module(lead: str, page: type[Number]) -> None:
    assert number_rows(lead) == {int(number): (number.owner, number.traits) for number in page}


# --- values --------------------------------------------------------------------------------------------------


def row_with(text: str) -> str:
    (found,) = (" | ".join(row) for table in TABLES for row in table.rows if any(text in cell for cell in row))
    return found


def test_the_version_is_that_of_the_module() -> None:
    assert TEXT.startswith(f"# The store, format {layout.FORMAT_VERSION}\n")
    assert f"format version, {layout.FORMAT_VERSION};" in row_with("format version")


def magic_words() -> set[str]:
    """Of the module: eight bytes, or what is read as one number."""
    values = [value for name, value in vars(layout).items() if re.search("MAGIC|MARK", name)]
    words = [value if isinstance(value, bytes) else value.to_bytes(8, "little") for value in values]
    return {word.decode() for word in words if word.startswith(b"snapfs")}


def test_the_magic_words_are_those_of_the_module() -> None:
    assert {word for word in in_backticks(TEXT) if re.fullmatch("snapfs[A-Z].", word)} == magic_words()


@pytest.mark.parametrize(
    ("field", "values"), [("durability: ", Durability), ("protect: ", Protect), ("state: ", State)]
)
def test_what_a_field_may_hold(field: str, values: type[Durability | Protect | State]) -> None:
    said = dict(re.findall(r"(\d) (\w+)", row_with(field).partition(field)[2]))
    assert said == {str(int(value)): value.name.lower() for value in values}


def test_what_a_record_may_hold() -> None:
    said = re.findall(r"(\d) \w+", row_with("payload: ").partition("payload: ")[2].partition("(")[0])
    assert said == [str(int(flag)) for flag in RecordFlag]


def test_the_limits() -> None:
    assert row_with("length P of the path").endswith(f"at most {layout.MAX_PATH_BYTES}")
    assert f"at most {layout.MAX_NAME_BYTES};" in row_with("of its name, at most")
    assert f"at most {layout.MAX_HOLDERS};" in row_with("number H of its holders")
    assert f"{layout.HOLDER_BYTES} × H" in row_with("the holders")
    assert f"are {layout.PAGE_OF_NUMBERS_BYTES} bytes each" in TEXT


# --- index, staging, segments --------------------------------------------------------------------------------


def test_the_bits_of_an_entry() -> None:
    (table,) = (table for table in TABLES if table.section == "index")
    kinds = dict(table.rows)
    assert set(kinds) == {"00", "01", "10", "11"}
    assert "staging" in kinds[f"{layout.STAGED >> 62:02b}"]
    place = kinds[f"{layout.STORED >> 62:02b}"]
    segment_bits, offset_bits, length_bits = map(int, re.findall(r"(\d+) bits", place))
    assert (1 << segment_bits) - 1 == layout.MAX_SEGMENT_NO
    assert layout.RECORD_ALIGN << offset_bits == layout.SEGMENT_BYTES
    assert segment_bits + offset_bits + length_bits == 62
    assert f"units of {layout.RECORD_ALIGN} bytes" in place
    assert f"`{layout.LOST_ENTRY:#018x}`" in TEXT


def test_the_ring() -> None:
    assert f"(generation << {layout.SEED_SHIFT}) + sequence number" in TEXT
    assert layout.NO_TAG == 2**64 - 1
    assert "2^64−1 for none" in row_with("tags, u64")


def test_the_magic_number_of_a_record() -> None:
    said = row_with("1SFR")
    assert f"`0x{layout.RECORD_MAGIC:08X}`" in said
    assert layout.RECORD_MAGIC.to_bytes(4, "little") == b"1SFR"
    assert f"version, {layout.RECORD_VERSION}" in TEXT


# --- names ---------------------------------------------------------------------------------------------------


def names_of_the_store() -> set[str]:
    names: set[str] = set()
    for module in pkgutil.iter_modules(cow.disk.__path__, "cow.disk."):
        for constant, value in vars(importlib.import_module(module.name)).items():
            if constant.endswith("_NAME") and isinstance(value, str):
                names.add(value)
            elif constant.endswith("_NAMES") and not constant.startswith("_"):
                names.update(value)
    return names


def names_in(cell: str) -> set[str]:
    """Of a cell; without the directory of the cut, and without a number's place."""
    words = [word.removeprefix("cut-…/").split("/NNN")[0] for word in re.findall(r"`([^`]+)`", cell)]
    return {word for word in words if not word.startswith("cut-")}


def test_every_name_in_a_store_is_in_the_document() -> None:
    (table,) = (table for table in TABLES if table.section == "Names")
    said = {name for row in table.rows for cell in row for name in names_in(cell)}
    assert names_of_the_store() <= said


def test_the_document_has_no_other_names() -> None:
    (table,) = (table for table in TABLES if table.section == "Names")
    ours = {
        name for first, what, _ in table.rows for name in names_in(first) if not what.startswith("of the processes")
    }
    assert ours <= names_of_the_store()


def test_the_maps_of_a_seal() -> None:
    (line,) = (line for line in TEXT.splitlines() if line.startswith("map NAME DIGEST"))
    said = re.search(r"for (.*):", line)
    assert said is not None
    assert tuple(said[1].split(", ")) == seal.MAP_NAMES
