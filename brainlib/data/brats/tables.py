"""Who the patients are: grade, age, survival and resection from the tables that come with the volumes."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_ALIVE = re.compile(r"ALIVE \((\d+) days later\)", re.IGNORECASE)
_MISSING = {"", "na", "nan", "none"}


@dataclass(frozen=True)
class Patient:
    """One patient. What the tables do not say is None.

    Attributes:
        id: ``BraTS20_Training_007``.
        number: 7, the number in the names of the HDF5 slices.
        grade: ``"HGG"`` or ``"LGG"``, high- or low-grade glioma.
        age: years.
        survival_days: days from diagnosis to death, or to the last contact where ``censored``.
        censored: True where the patient was alive at the last contact; None where nothing is known.
        resection: extent of resection, ``"GTR"`` (gross total) or ``"STR"`` (subtotal).
    """

    id: str
    number: int
    grade: str | None = None
    age: float | None = None
    survival_days: int | None = None
    censored: bool | None = None
    resection: str | None = None


def parse_survival(text: str) -> tuple[int | None, bool | None]:
    """Days and whether they are censored: ``"289"`` -> (289, False), ``"ALIVE (361 days later)"`` -> (361, True)."""
    text = text.strip()
    if text.lower() in _MISSING:
        return None, None
    if match := _ALIVE.fullmatch(text):
        return int(match[1]), True
    if not re.fullmatch(r"\d+", text):
        raise ValueError
    return int(text), False


def _age(text: str) -> float:
    if not 0 < (age := float(text)) < 120:
        raise ValueError
    return age


def _choice(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.upper() not in names:
            raise ValueError
        return text.upper()

    return parse


#: For each table: the column that names the patient, and for each further column the fact and how it is read.
_TABLES = {
    "name_mapping.csv": ("brats_2020_subject_id", {"grade": ("grade", _choice("HGG", "LGG"))}),
    "survival_info.csv": (
        "brats20id",
        {
            "age": ("age", _age),
            "survival_days": ("survival", parse_survival),
            "extent_of_resection": ("resection", _choice("GTR", "STR")),
        },
    ),
}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table with lower-case column names and stripped values; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        rows = csv.DictReader(lines)
        return [{(k or "").strip().lower(): (v or "").strip() for k, v in row.items() if k} for row in rows]


def read_patients(folder: Path, ids: list[str]) -> tuple[list[Patient], list[str]]:
    """The patients ``ids``, and what is wrong in the tables: file, line, column and value.

    The tables are looked for in ``folder`` and up to three folders above it.
    """
    facts: dict[str, dict] = {}
    problems: list[str] = []
    for name, (key, columns) in _TABLES.items():
        path = next((p / name for p in [folder, *folder.parents][:4] if (p / name).is_file()), None)
        rows = read_rows(path) if path else []
        if rows and (absent := [column for column in (key, *columns) if column not in rows[0]]):
            problems.append(f"{name}: no column {', '.join(absent)}")
            continue
        seen: set[str] = set()
        for line, row in enumerate(rows, start=2):
            patient = row[key]
            if not patient or patient in seen:
                problems.append(f"{name}, line {line}: {'second row for ' + patient if patient else 'no patient'}")
                continue
            seen.add(patient)
            known = facts.setdefault(patient, {})
            for column, (fact, parse) in columns.items():
                if row[column].lower() not in _MISSING:
                    try:
                        known[fact] = parse(row[column])
                    except ValueError:
                        problems.append(f"{name}, line {line} ({patient}): {column} is {row[column]!r}")
    return [_patient(id, dict(facts.get(id, {}))) for id in ids], problems


def _patient(id: str, facts: dict) -> Patient:
    days, censored = facts.pop("survival", (None, None))
    digits = re.findall(r"\d+", id)
    return Patient(id, int(digits[-1]) if digits else -1, survival_days=days, censored=censored, **facts)
