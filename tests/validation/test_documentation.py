"""docs/datasets.md says what the code does: every rule with its statement, every array, every key."""

from pathlib import Path

from pipeline.data import ARRAYS
from pipeline.data.metadata import METADATA_KEYS
from pipeline.validation.rules import CATALOGUE

TEXT = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()


def test_every_rule_is_documented_with_its_statement():
    missing = [rule.name for rule in CATALOGUE if f"| `{rule.name}` | {rule.statement} |" not in TEXT]
    assert not missing


def test_every_array_and_every_metadata_key_is_documented():
    missing = [name for name in (*ARRAYS, *METADATA_KEYS) if f"`{name}`" not in TEXT]
    assert not missing
